import { randomBytes } from 'node:crypto';
import { readdir, rm, stat } from 'node:fs/promises';
import path from 'node:path';
import { minuteMs } from '../lib/durations.ts';

/** A temporary name for building `target`, which is renamed when it is complete. */
export function unfinishedName(target: string): string {
  return `${target}.unfinished-${randomBytes(6).toString('hex')}`;
}

const unfinishedPattern = /\.unfinished-[0-9a-f]{12}(\.\w+)?$/;
const abandonedAfterMs = 10 * minuteMs;

/** Removes what killed starts left behind: no start takes ten minutes. */
export async function removeUnfinished(directory: string): Promise<void> {
  for (const name of await readdir(directory).catch(() => [])) {
    if (!unfinishedPattern.test(name)) continue;
    const found = path.join(directory, name);
    const changed = await stat(found).catch(() => undefined);
    if (changed !== undefined && Date.now() - changed.ctimeMs < abandonedAfterMs) continue;
    await rm(found, { recursive: true, force: true, maxRetries: 10, retryDelay: 50 });
  }
}
