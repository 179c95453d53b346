import { existsSync, readdirSync } from 'node:fs';
import { mkdir, readFile, writeFile } from 'node:fs/promises';
import path from 'node:path';
import { readConfig } from '../../src/config/config.ts';
import { defaultDataDirectory } from '../../src/embedded-postgres/start.ts';
import type { Credentials } from '../../src/service/embedded-instance.ts';
import { createLogger } from '../../src/service/logger.ts';
import { type Service, startService } from '../../src/service/service.ts';
import { createClient } from './client.ts';
import { whatToLookAt } from './instructions.ts';
import { fill } from './sample-data.ts';

// `npm run demo`: an instance of its own, filled once, running until Ctrl-C.

const signals = ['SIGINT', 'SIGTERM'] as const;
const env = process.env;
const directory = path.resolve(env['LATCHKEY_DATA_DIR'] || `${defaultDataDirectory(process.cwd())}-demo`);
/** Says that a folder is the demo's, and how far it has come. */
const marker = path.join(directory, 'demo');

class Refused extends Error {
  override readonly name = 'Refused';
}

/** Nothing is filled that somebody else might rely on. */
async function requireOwnInstance(): Promise<{ isFilled: boolean }> {
  for (const name of ['DATABASE_URL', 'DATABASE_URL_FILE']) {
    if (env[name]) throw new Refused(`${name} is set: the demo fills an instance of its own and nobody else's.`);
  }
  if (!existsSync(directory) || readdirSync(directory).length === 0) return { isFilled: false };
  const state = await readFile(marker, 'utf8').catch(() => undefined);
  if (state === undefined) throw new Refused(`${directory} holds something that the demo has not made.`);
  if (state !== 'filled')
    throw new Refused(`A demo was interrupted in ${directory}. Remove that folder, and start again.`);
  return { isFilled: true };
}

async function main(stopAsked: Promise<'stop'>): Promise<void> {
  const { isFilled } = await requireOwnInstance();
  if (!isFilled) {
    await mkdir(directory, { recursive: true });
    await writeFile(marker, 'begun');
  }
  const config = readConfig({ LOG_LEVEL: 'warn', ...env, LATCHKEY_DATA_DIR: directory });
  const logger = createLogger({ level: config.LOG_LEVEL, tokenPrefix: config.TOKEN_PREFIX });
  const service = await startService(config, logger);
  try {
    await Promise.race([stopAsked, show(service, isFilled)]);
    await stopAsked;
  } finally {
    await service.stop();
  }
}

async function show({ url, embedded }: Service, isFilled: boolean): Promise<void> {
  if (embedded === undefined) throw new Error('the demo has no embedded instance');
  const tokens = JSON.parse(await readFile(embedded.credentialsFile, 'utf8')) as Credentials;
  const admin = createClient(url, tokens.adminToken);
  if (!isFilled) {
    process.stdout.write('Filling an organization: partners, traffic, reveals, mistakes, a leak.\n');
    await fill(admin, createClient(url, tokens.verifierToken), tokens.key);
    await writeFile(marker, 'filled');
  }
  process.stdout.write(await whatToLookAt(url, admin, tokens));
}

const stopAsked = new Promise<'stop'>((resolve) => {
  for (const signal of signals) process.once(signal, () => resolve('stop'));
});

await main(stopAsked).then(
  () => process.exit(0),
  (error: unknown) => {
    process.stderr.write(`latchkey demo: ${error instanceof Error ? error.message : String(error)}\n`);
    process.exit(1);
  },
);
