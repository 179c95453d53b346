import { Command, InvalidArgumentError, Option } from 'commander';
import { isId, type OrganizationId } from '../domain/ids.ts';
import type { Format } from './import-lines.ts';

export interface ImportOptions {
  organization: OrganizationId;
  dryRun?: true;
  format?: Format;
  errors?: string;
}

export function importCommand(env: NodeJS.ProcessEnv): Command {
  return new Command('import')
    .description(
      'import keys that exist elsewhere from NDJSON or CSV; the service may be running; may be interrupted and run again',
    )
    .argument('<file>', 'the file with one key a line; - for standard input')
    .addOption(
      new Option('--organization <id>', 'the organization of the keys')
        .argParser(parseOrganization)
        .makeOptionMandatory(),
    )
    .option('--dry-run', 'check everything and store nothing')
    .addOption(
      new Option('--format <format>', 'default: by the ending, .csv, .ndjson or .jsonl').choices(['ndjson', 'csv']),
    )
    .option('--errors <file>', 'write the lines that do not fit to this new file; it contains their tokens')
    .addHelpText(
      'after',
      '\nExit code 1 if a line does not fit; the others are imported. docs/migration.md has the members and columns.',
    )
    .action(async (file: string, options: ImportOptions, command: Command) => {
      const format = options.format ?? formatOf(file);
      if (format === undefined) return command.error("error: use '--format ndjson' or '--format csv' for this file");
      // Loaded only when needed, because it takes longer than most other commands.
      const { importFile } = await import('./import-file.ts');
      await importFile(env, file, { ...options, format });
    });
}

function parseOrganization(text: string): OrganizationId {
  if (isId('org', text)) return text;
  throw new InvalidArgumentError('Must be the id of an organization, such as org_ and 26 characters.');
}

function formatOf(file: string): Format | undefined {
  if (/\.csv$/i.test(file)) return 'csv';
  return /\.(ndjson|jsonl)$/i.test(file) ? 'ndjson' : undefined;
}
