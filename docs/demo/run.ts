import { existsSync, readdirSync } from 'node:fs';
import { mkdir, readFile, writeFile } from 'node:fs/promises';
import path from 'node:path';
import { readConfig } from '../../src/config/config.ts';
import { defaultDataDirectory } from '../../src/embedded-postgres/start.ts';
import type { Credentials } from '../../src/service/embedded-instance.ts';
import { createLogger } from '../../src/service/logger.ts';
import { type Service, startService } from '../../src/service/service.ts';
import { createClient } from './client.ts';
import { createInstructions } from './instructions.ts';
import { createSampleData } from './sample-data.ts';

// `npm run demo` starts a separate instance, fills it with sample data on the first start, and runs until Ctrl-C.

const signals = ['SIGINT', 'SIGTERM'] as const;
const env = process.env;
const directory = path.resolve(env['LATCHKEY_DATA_DIR'] || `${defaultDataDirectory(process.cwd())}-demo`);
/** Marks a folder as the demo's; contains `filled` once the sample data is complete. */
const markerFile = path.join(directory, 'demo');

/** Protects databases and folders that the demo has not created. */
async function requireDemoInstance(): Promise<{ isFilled: boolean }> {
  for (const name of ['DATABASE_URL', 'DATABASE_URL_FILE']) {
    if (env[name]) throw new Error(`${name} is set. The demo only uses its own embedded database; unset the variable.`);
  }
  if (!existsSync(directory) || readdirSync(directory).length === 0) return { isFilled: false };
  const state = await readFile(markerFile, 'utf8').catch(() => undefined);
  if (state === undefined) throw new Error(`${directory} contains files that the demo has not created.`);
  if (state !== 'filled') throw new Error(`A demo was interrupted in ${directory}. Remove the folder and start again.`);
  return { isFilled: true };
}

async function main(stopRequested: Promise<'stop'>): Promise<void> {
  const { isFilled } = await requireDemoInstance();
  if (!isFilled) {
    await mkdir(directory, { recursive: true });
    await writeFile(markerFile, 'begun');
  }
  const config = readConfig({ LOG_LEVEL: 'warn', ...env, LATCHKEY_DATA_DIR: directory });
  const logger = createLogger({ level: config.LOG_LEVEL, tokenPrefix: config.TOKEN_PREFIX });
  const service = await startService(config, logger);
  try {
    await Promise.race([stopRequested, prepare(service, isFilled)]);
    await stopRequested;
  } finally {
    await service.stop();
  }
}

async function prepare({ url, embedded }: Service, isFilled: boolean): Promise<void> {
  if (embedded === undefined) throw new Error('the service has no embedded database');
  const tokens = JSON.parse(await readFile(embedded.credentialsFile, 'utf8')) as Credentials;
  const admin = createClient(url, tokens.adminToken);
  if (!isFilled) {
    process.stdout.write('Creating sample data: partners, traffic, reveals, deletions and a leaked key.\n');
    await createSampleData(admin, createClient(url, tokens.verifierToken), tokens.key);
    await writeFile(markerFile, 'filled');
  }
  process.stdout.write(await createInstructions(url, admin, tokens));
}

const stopRequested = new Promise<'stop'>((resolve) => {
  for (const signal of signals) process.once(signal, () => resolve('stop'));
});

await main(stopRequested).then(
  () => process.exit(0),
  (error: unknown) => {
    process.stderr.write(`latchkey demo: ${error instanceof Error ? error.message : String(error)}\n`);
    process.exit(1);
  },
);
