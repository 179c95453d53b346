import { sql } from 'kysely';
import { type Db, type Tx, writeTransaction } from '../../database/client.ts';
import { currentTime } from '../../database/credential.ts';
import { type Transactor, transact } from '../../database/work.ts';
import { systemActor } from '../../domain/actor.ts';
import { newId } from '../../domain/ids.ts';
import { exists, writeDurably } from '../../lib/durable-file.ts';
import { dayMs } from '../../lib/durations.ts';
import type { ChainStart } from '../chain-walk.ts';
import type { Checkpoint } from '../checkpoints/checkpoint.ts';
import { exportChain, verifyExport } from '../export.ts';
import { record } from '../record.ts';
import { findRange, readHead, readStoredStart } from '../store.ts';
import { verifyChain } from '../verify.ts';
import { type Archive, archiveMac, endOf, readArchivedPart, readLastArchive, toDetails } from './archive.ts';
import { openArchiveFile } from './archive-file.ts';
import { areStatesSound, holdStates, removeStaleStates, storeStates } from './states.ts';

/** The events must not be archived. The message says why and what to do. */
export class ArchiveRefused extends Error {
  override readonly name = 'ArchiveRefused';
}

/**
 * Younger events are not archived: a delivery needs its event for 30 days, and a claim the event of its end until it
 * expires.
 */
export const keptDays = 90;

export interface ArchiveRequest {
  chain: string;
  /** Exclusive. */
  before: Date;
  file: string;
  /** Checkpoints of this chain that were kept outside of the database. */
  checkpoints: readonly Checkpoint[];
}

/** The events that the next archive of a chain has. */
export interface ArchivePlan {
  first: number;
  last: ChainStart;
  /** The last archive of the chain. */
  previous: Archive | undefined;
}

interface ArchivingDeps {
  /** Connected as the owner of the database. */
  transactor: Transactor;
  /** Called with the number of the last event that was checked or removed, and with that of the last one to come. */
  onProgress?: (done: number, total: number) => void;
}

/**
 * Finds the events before a time that are not archived yet, and verifies the whole chain. The last event of a chain
 * stays: checkpoints compare the head with it.
 * @returns undefined if there are none
 * @throws ArchiveRefused
 */
export async function planArchive(
  { transactor, onProgress }: ArchivingDeps,
  { chain, before, checkpoints }: Omit<ArchiveRequest, 'file'>,
): Promise<ArchivePlan | undefined> {
  const { db, clock, keyring } = transactor;
  await requireOwner(db);
  const youngest = new Date((await currentTime(db, clock)).getTime() - keptDays * dayMs);
  if (before > youngest) {
    throw new ArchiveRefused(
      `Events of the last ${keptDays} days are not archived: webhooks and claims may need them. ` +
        `Use --before ${youngest.toISOString().slice(0, 10)} or an earlier day.`,
    );
  }
  const { archives, flaws } = await readArchivedPart(db, chain, keyring);
  if (flaws[0] !== undefined) throw new ArchiveRefused(`${flaws[0].reason}. Run latchkey audit verify.`);
  const previous = archives.at(-1);
  if (previous !== undefined && !(await areStatesSound(db, previous))) {
    throw new ArchiveRefused(
      `The stored states of ${previous.id} were changed. Run latchkey audit verify, and restore the rows of ` +
        'history_archive_states from a backup.',
    );
  }
  const first = (previous?.last_sequence ?? 0) + 1;
  const head = await readHead(db, chain);
  const range = await findRange(db, chain, { to: before });
  const last = Math.min(range?.last ?? 0, head.sequence - 1);
  if (last < first) return undefined;
  await requireNoDeliveries(db, chain, last);
  const verdict = await verifyChain(db, chain, {
    keyring,
    checkpoints,
    onProgress: (sequence) => onProgress?.(Math.min(sequence, head.sequence), head.sequence),
  });
  const [flaw] = verdict.flaws;
  if (flaw !== undefined) {
    throw new ArchiveRefused(
      `Event ${flaw.firstSequence} of ${chain} is bad: ${flaw.reason}. Run latchkey audit verify.`,
    );
  }
  if (!checkpoints.some(({ size }) => size >= last)) {
    throw new ArchiveRefused(
      `No given checkpoint of ${chain} covers event ${last}. Use a checkpoint that was signed after it, such as a ` +
        'CHECKPOINT_FILE or a saved reply of GET /v1/history/checkpoint.',
    );
  }
  return { first, last: await readPlace(db, chain, last), previous };
}

/** Only deliveries of the last 30 days are kept, so there are some only if their job does not run. */
async function requireNoDeliveries(db: Db, chain: string, last: number): Promise<void> {
  const { rows } = await sql`
    select from webhook_deliveries as delivery join webhook_endpoints as endpoint on endpoint.id = delivery.endpoint_id
    where endpoint.organization_id = ${chain} and delivery.sequence <= ${last} limit 1`.execute(db);
  if (rows.length === 0) return;
  throw new ArchiveRefused(
    'Deliveries of webhooks still need some of these events. The job prune_webhook_deliveries deletes deliveries 30 days ' +
      'after their event: is a service running?',
  );
}

async function readPlace(db: Db, chain: string, sequence: number): Promise<ChainStart> {
  const { hash } = await db
    .selectFrom('history')
    .select('hash')
    .where('chain', '=', chain)
    .where('sequence', '=', sequence)
    .executeTakeFirstOrThrow();
  return { sequence, hash };
}

/** @throws ArchiveRefused if the role may not remove events */
async function requireOwner(db: Db): Promise<void> {
  const { rows } = await sql<{ role: string; may: boolean }>`
    select current_user::text as role, has_table_privilege('history', 'delete') as may`.execute(db);
  if (rows[0]?.may === true) return;
  throw new ArchiveRefused(
    `Role ${rows[0]?.role} may not remove events. Set MIGRATION_DATABASE_URL to the URL of the owner of the database.`,
  );
}

/**
 * Writes the planned events to a file, checks the file, records the archive, and removes the events. If it is killed, a
 * repeated run continues. One run at a time.
 * @throws ArchiveRefused
 */
export async function archiveEvents(
  deps: ArchivingDeps,
  plan: ArchivePlan,
  { chain, file }: Pick<ArchiveRequest, 'chain' | 'file'>,
): Promise<Archive> {
  const { transactor } = deps;
  const { db } = transactor;
  if (!(await exists(file))) await writeExport(db, chain, plan, file);
  const { sha256, bytes } = await checkFile(file, chain, plan);
  await removeStaleStates(db);
  const id = newId('archive');
  const recorded = { chain, archive: plan.previous, upTo: plan.last.sequence };
  const statesSha256 = await storeStates(db, id, recorded);
  const archive = await transact(transactor, by, async (work) => {
    const content = {
      id,
      chain,
      first_sequence: plan.first,
      last_sequence: plan.last.sequence,
      hash: plan.last.hash,
      file_sha256: sha256,
      file_bytes: bytes,
      states_sha256: statesSha256,
      archived_at: work.now,
    };
    const row = { ...content, ...archiveMac(work.keyring, content) };
    // The lock on the command ends with its connection, so a second run may have begun.
    if (!(await holdStates(work.tx, row))) {
      throw new ArchiveRefused('Another run has deleted the states of this one. Nothing was removed. Run it again.');
    }
    await work.tx.insertInto('history_archives').values(row).execute();
    record(work, { action: 'history.archived', details: { archiveId: id, ...toDetails(content) } });
    return row;
  });
  await removeArchived(deps, archive);
  return archive;
}

const by = {
  actor: systemActor('archive'),
  organizationId: null,
  request: null,
};

/**
 * Removes events that an earlier run has archived and not removed.
 * @param file the file of that run, which must still be there if any event is removed
 * @returns the archive; undefined if all its events are removed
 * @throws ArchiveRefused
 */
export async function finishArchive(
  deps: ArchivingDeps,
  { chain, file }: Pick<ArchiveRequest, 'chain' | 'file'>,
): Promise<Archive | undefined> {
  const { db, keyring } = deps.transactor;
  const archive = await readLastArchive(db, chain, keyring);
  const stored = await readStoredStart(db, chain);
  if (archive === undefined || stored === undefined || stored.sequence >= archive.last_sequence) return undefined;
  // Nothing is removed yet, so the events make the same file again.
  if (stored.sequence < archive.first_sequence && !(await exists(file))) {
    await writeExport(db, chain, { first: archive.first_sequence, last: endOf(archive) }, file);
  }
  const found = (await exists(file)) ? await digestOf(file) : undefined;
  if (found?.equals(archive.file_sha256) !== true) {
    throw new ArchiveRefused(
      `An earlier run has archived events ${archive.first_sequence} to ${archive.last_sequence}, and was stopped before it had ` +
        `removed all of them. Give its file with --to: the one with the SHA-256 ${archive.file_sha256.toString('hex')}.`,
    );
  }
  await removeArchived(deps, archive);
  return archive;
}

const removedAtOnce = 5_000;

/** From the first event on, so that the stored events are always the end of the chain. */
async function removeArchived({ transactor: { db }, onProgress }: ArchivingDeps, archive: Archive): Promise<void> {
  const { chain, last_sequence: last } = archive;
  for (;;) {
    const stored = await readStoredStart(db, chain);
    if (stored === undefined || stored.sequence >= last) break;
    const upTo = Math.min(stored.sequence + removedAtOnce, last);
    await writeTransaction(db).execute((tx) => removeEvents(tx, chain, upTo));
    onProgress?.(upTo, last);
  }
  await removeStaleStates(db);
}

async function removeEvents(tx: Tx, chain: string, upTo: number): Promise<void> {
  await sql`delete from history where chain = ${chain} and sequence > 0 and sequence <= ${upTo}`.execute(tx);
}

async function writeExport(
  db: Db,
  chain: string,
  { first, last }: Pick<ArchivePlan, 'first' | 'last'>,
  file: string,
): Promise<void> {
  await writeDurably(file, `${file}.unfinished`, async (handle) => {
    for await (const lines of exportChain(db, chain, last.sequence, first - 1)) await handle.writeFile(lines);
  });
}

async function digestOf(file: string): Promise<Buffer> {
  const { lines, digest } = openArchiveFile(file);
  for await (const _line of lines);
  return digest().sha256;
}

/** Reads the file again: it must have exactly the planned events. */
async function checkFile(file: string, chain: string, { first, last, previous }: ArchivePlan) {
  const { lines, digest } = openArchiveFile(file);
  const from = previous && endOf(previous);
  const verdict = await verifyExport(lines, { chain, from });
  const [flaw] = verdict?.flaws ?? [];
  if (verdict !== undefined && flaw === undefined && verdict.head.equals(last.hash)) return digest();
  const why = flaw === undefined ? 'it ends with another event' : `event ${flaw.firstSequence}: ${flaw.reason}`;
  throw new ArchiveRefused(
    `${file} does not have exactly the events ${first} to ${last.sequence} of ${chain} (${why}). Nothing was removed. If the ` +
      'file was there before, move it away or choose another name.',
  );
}
