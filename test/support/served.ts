import type { Test } from 'tap';
import { generateKeyring } from '../../src/crypto/keyring.ts';
import type { ClusterUrls } from './cluster.ts';
import { createDatabase } from './database.ts';
import { type RunningProcess, runEntry } from './process.ts';

/** A Latchkey process on a new database with an organization. */
export interface Served {
  process: RunningProcess;
  url: string;
  urls: ClusterUrls;
  /** The environment of the process, also for commands. */
  env: NodeJS.ProcessEnv;
  /** `organizationId`, `adminToken`, `verifierToken`, `operatorToken`. */
  tokens: Record<string, string>;
}

export async function serve(
  t: Test,
  env: NodeJS.ProcessEnv = {},
  { urls: given, ...limits }: { descriptors?: number; urls?: ClusterUrls } = {},
): Promise<Served> {
  const urls = given ?? (await createDatabase(t));
  const environment = {
    DATABASE_URL: urls.app,
    LATCHKEY_KEYRING: generateKeyring(new Date()),
    PORT: '0',
    // A machine that runs many tests delays the event loop by itself.
    DATABASE_TIMEOUT_MS: '20000',
    EVENT_LOOP_DELAY_LIMIT_MS: '60000',
  };
  const names = ['--organization', 'Example', '--admin-email', 'ada@example.com'];
  const bootstrap = runEntry(t, 'cli/latchkey.ts', ['bootstrap', ...names], { env: environment });
  await bootstrap.exited;
  const tokens = JSON.parse(bootstrap.stdout()) as Record<string, string>;
  const process = runEntry(t, 'server.ts', [], { env: { ...environment, ...env }, ...limits });
  const [, url = ''] = await process.until(/Server listening at (http:\/\/[^"]+)"/);
  return { process, url, urls, env: { ...environment, ...env }, tokens };
}
