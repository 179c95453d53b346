import { writeFile } from 'node:fs/promises';
import type { Ledger } from './ledger.ts';
import type { Installation } from './parts.ts';

/** What the load does not cause by itself. */
const unpredictable = ['key.used_after_deletion'];

/**
 * Compares what was acknowledged with the list of keys and the history.
 * @param checkpoints the signed checkpoints of before each failure, in a file
 * @returns a line for each difference
 */
export async function compareBooks(parts: Installation, ledger: Ledger, checkpoints: string): Promise<string[]> {
  const events = await exportedEvents(parts);
  const inHistory = countsOf(events.map(({ action, keyId, partnerId }) => `${action} ${keyId ?? partnerId}`));
  const acknowledged = countsOf(ledger.acknowledged.map(({ action, id }) => `${action} ${id}`));
  const differences: string[] = [];
  for (const change of new Set([...inHistory.keys(), ...acknowledged.keys()])) {
    const [recorded, expected] = [inHistory.get(change) ?? 0, acknowledged.get(change) ?? 0];
    if (recorded < expected)
      differences.push(`lost: ${change} was acknowledged ${expected} times, is in history ${recorded} times`);
    if (recorded > expected)
      differences.push(`twice: ${change} was acknowledged ${expected} times, is in history ${recorded} times`);
  }
  const statuses = await listedStatuses(parts);
  for (const [id, expected] of ledger.keys) {
    const status = statuses.get(id);
    if (status !== expected) differences.push(`lost: ${id} should be ${expected}, but is ${status}`);
    statuses.delete(id);
  }
  for (const id of statuses.keys()) differences.push(`twice: ${id} was never acknowledged`);
  const audit = await parts.command(['audit', 'verify', '--checkpoint', checkpoints]);
  if (audit.code !== 0) differences.push(`audit verify: ${audit.output}`);
  return differences;
}

/** Appends a signed checkpoint of the organization's history to a file. */
export async function keepCheckpoint(parts: Installation, file: string): Promise<void> {
  await writeFile(file, `${await read(parts, '/v1/history/checkpoint')}\n`, { flag: 'a' });
}

interface ExportedEvent {
  action: string;
  keyId: string | null;
  partnerId: string | null;
}

async function exportedEvents(parts: Installation): Promise<ExportedEvent[]> {
  const lines = (await read(parts, '/v1/history/export')).split('\n').filter((line) => line !== '');
  const events = lines.map((line) => JSON.parse(line) as ExportedEvent);
  return events.filter(({ action }) => /^(key|partner)\./.test(action) && !unpredictable.includes(action));
}

async function listedStatuses(parts: Installation): Promise<Map<string, string>> {
  const statuses = new Map<string, string>();
  for (let cursor = ''; ; ) {
    const query = new URLSearchParams({ includeDeleted: 'true', limit: '100', ...(cursor === '' ? {} : { cursor }) });
    const { data, nextCursor } = JSON.parse(await read(parts, `/v1/keys?${query}`)) as {
      data: Array<{ id: string; status: string }>;
      nextCursor: string | null;
    };
    for (const { id, status } of data) statuses.set(id, status);
    if (nextCursor === null) return statuses;
    cursor = nextCursor;
  }
}

async function read({ balancer, tokens }: Installation, target: string): Promise<string> {
  const reply = await fetch(balancer.url + target, { headers: { authorization: `Bearer ${tokens.admin}` } });
  const text = await reply.text();
  if (!reply.ok) throw new Error(`GET ${target}: ${reply.status} ${text}`);
  return text;
}

function countsOf(names: readonly string[]): Map<string, number> {
  const counts = new Map<string, number>();
  for (const name of names) counts.set(name, (counts.get(name) ?? 0) + 1);
  return counts;
}
