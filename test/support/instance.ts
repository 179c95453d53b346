import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import type { Test } from 'tap';
import { type RunningProcess, runEntry } from './process.ts';

/** A new folder, deleted when the test ends. */
export async function scratch(t: Test): Promise<string> {
  const directory = await mkdtemp(path.join(tmpdir(), 'latchkey-embedded-'));
  t.teardown(() => rm(directory, { recursive: true, force: true, maxRetries: 10 }));
  return directory;
}

/** A running Latchkey with its embedded Postgres. */
export interface Instance {
  process: RunningProcess;
  url: string;
  directory: string;
  credentials(): Promise<Record<string, string>>;
}

export async function start(t: Test, directory: string, env: NodeJS.ProcessEnv = {}): Promise<Instance> {
  const process = runEntry(t, 'server.ts', [], { env: { PORT: '0', LATCHKEY_DATA_DIR: directory, ...env } });
  const [, url = ''] = await process.until(/Latchkey listens on (http:\/\/[^\s,]+[0-9])/, 90_000);
  const credentials = async () => JSON.parse(await readFile(path.join(directory, 'credentials.json'), 'utf8'));
  return { process, url, directory, credentials };
}
