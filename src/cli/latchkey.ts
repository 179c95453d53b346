#!/usr/bin/env -S node --min-semi-space-size=16 --heap-growing-percent=100
import { Command } from 'commander';
import { packageVersion } from '../lib/package.ts';
import { auditCommand } from './audit.ts';
import { bootstrapCommand } from './bootstrap.ts';
import { doctorCommand } from './doctor.ts';
import { exitCodeOf } from './exit-code.ts';
import { describeFailure } from './failure.ts';
import { historyCommand } from './history.ts';
import { importCommand } from './import.ts';
import { migrateCommand } from './migrate.ts';
import { openApiCommand } from './openapi.ts';
import { ignoreGoneReader } from './print.ts';
import { rekeyCommand } from './rekey.ts';

/** Imported only when needed, because loading the HTTP server takes longer than most other commands. */
async function serve(options: { mayEmbed: boolean }): Promise<void> {
  const service = await import('./serve.ts');
  await service.serve(process.env, options);
}

const program = new Command('latchkey')
  .description('Manages API keys. Configured by environment variables; docs/configuration.md lists them.')
  .version(packageVersion())
  .addHelpText('after', '\nExit codes: 0 done, 1 failed, 2 wrong usage, 78 wrong configuration.');

program
  .command('serve')
  .description('run the service with the Postgres of DATABASE_URL until a signal stops it')
  .action(() => serve({ mayEmbed: false }));
program
  .command('try')
  .description('run the service without configuration: starts an embedded Postgres if DATABASE_URL is not set')
  .action(() => serve({ mayEmbed: true }));
program.addCommand(migrateCommand(process.env));
program.addCommand(bootstrapCommand(process.env));
program.addCommand(doctorCommand(process.env));
program.addCommand(rekeyCommand(process.env));
program.addCommand(importCommand(process.env));
program.addCommand(auditCommand(process.env));
program.addCommand(historyCommand(process.env));
program.addCommand(openApiCommand());

// By default commander exits with 1 for wrong usage too.
const commands = program.commands.flatMap((command) => [command, ...command.commands]);
for (const command of [program, ...commands]) {
  command.exitOverride((error) => process.exit(error.exitCode === 0 ? 0 : 2));
}

ignoreGoneReader();
try {
  await program.parseAsync();
} catch (error) {
  process.stderr.write(`latchkey: ${describeFailure(error, process.env)}\n`);
  process.exitCode = exitCodeOf(error);
}
