import { createHash } from 'node:crypto';
import { sql } from 'kysely';
import { type Db, type Tx, writeTransaction } from '../../database/client.ts';
import type { HistoryArchiveStatesTable } from '../../database/tables/history-archive-states.ts';
import type { ArchiveId } from '../../domain/ids.ts';
import { chunksOf, inBatches, pagesOf } from '../../lib/batches.ts';
import { installationChain } from '../chain.ts';
import { columnOf, type PagedKind, type Recorded, statesOf, statesOfAll } from '../recorded-states.ts';
import { firstActionsOf, type RecordKind, type State } from '../state-replay.ts';
import { type HistorySubject, matches } from '../store.ts';
import type { Archive } from './archive.ts';

/** Stores and reads the states of a chain's records at its last archived event. */

type StoredState = Omit<HistoryArchiveStatesTable, 'archive_id'>;

/** SHA-256 of states in the order of kind and id, each as a line of JSON. */
export function createStatesDigest() {
  const hash = createHash('sha256');
  return {
    add(states: readonly StoredState[]): void {
      for (const { kind, id, state } of states) hash.update(`${JSON.stringify([kind, id, state])}\n`);
    },
    end: (): Buffer => hash.digest(),
  };
}

const readAtOnce = 1_000;

/** The stored states of an archive in the order of their digest, and whether the table of keys or partners has the record. */
export function listArchivedStates(db: Db, archiveId: ArchiveId, chain: string) {
  return pagesOf<StoredState & { is_there: boolean }>(async (last) => {
    const { rows } = await sql<StoredState & { is_there: boolean }>`
      select kind, id, state, case kind
          when 'key' then exists (select from api_keys where id = stored.id and organization_id = ${chain})
          when 'partner' then exists (select from partners where id = stored.id and organization_id = ${chain})
          else true end as is_there
      from history_archive_states as stored
      where archive_id = ${archiveId} and (kind, id) > (${last?.kind ?? ''}, ${last?.id ?? ''})
      order by kind, id limit ${readAtOnce}`.execute(db);
    return rows;
  });
}

/** Whether the archived part of the chain has events of this record. Every record has an event that created it. */
export async function isInArchive(db: Db, chain: string, subject: HistorySubject): Promise<boolean> {
  const [kind, id] = 'keyId' in subject ? ['key', subject.keyId] : ['partner', subject.partnerId];
  const { rows } = await sql`
    select from history_archives as archive
    join history_archive_states as stored on stored.archive_id = archive.id
    where archive.chain = ${chain} and stored.kind = ${kind} and stored.id = ${id} limit 1`.execute(db);
  return rows.length > 0;
}

/** Whether the stored states are those that the archive was made with. */
export async function areStatesSound(
  db: Db,
  { id, chain, states_sha256: expected }: Pick<Archive, 'id' | 'chain' | 'states_sha256'>,
): Promise<boolean> {
  const digest = createStatesDigest();
  for await (const page of listArchivedStates(db, id, chain)) digest.add(page);
  return digest.end().equals(expected);
}

const writtenAtOnce = 200;

/** Stores the states of all records of a chain. @returns their digest */
export async function storeStates(db: Db, archiveId: ArchiveId, recorded: Recorded): Promise<Buffer> {
  const digest = createStatesDigest();
  for (const kind of kindsOf(recorded.chain)) {
    const parts = isPaged(kind)
      ? chunksOf(await listIds(db, recorded, kind), writtenAtOnce).map(
          (ids) => (tx: Tx) => statesOf(tx, recorded, kind, ids),
        )
      : [(tx: Tx) => statesOfAll(tx, recorded, kind)];
    for (const read of parts) {
      await writeTransaction(db).execute(async (tx) => {
        const states = await read(tx);
        const rows = [...states].map(([id, state]) => ({ kind, id, state: toText(state) })).sort(byId);
        digest.add(rows);
        await insertStates(tx, archiveId, rows);
      });
    }
  }
  return digest.end();
}

/** In the order of the digest. */
function kindsOf(chain: string): RecordKind[] {
  return chain === installationChain
    ? ['access_token', 'history_archive']
    : ['access_token', 'key', 'organization', 'partner'];
}

function isPaged(kind: RecordKind): kind is PagedKind {
  return kind in columnOf;
}

/** Of every record of a kind that history has created, in order. About 100 bytes of memory for each. */
async function listIds(db: Db, { chain, archive, upTo }: Recorded, kind: PagedKind): Promise<string[]> {
  const ids = new Set<string>();
  if (archive !== undefined) {
    const archived = pagesOf<{ id: string }>((last) =>
      db
        .selectFrom('history_archive_states')
        .select('id')
        .where('archive_id', '=', archive.id)
        .where('kind', '=', kind)
        .where('id', '>', last?.id ?? '')
        .orderBy('id')
        .limit(readAtOnce)
        .execute(),
    );
    for await (const page of archived) for (const { id } of page) ids.add(id);
  }
  // One action at a time: the index has the events of one action in order.
  for (const action of firstActionsOf(kind)) {
    const created = pagesOf<{ sequence: number; id: string | null }>((last) =>
      db
        .selectFrom('history')
        .select(['sequence', `${columnOf[kind]} as id`])
        .where(matches(chain, [['action', action]]))
        .where(sql<boolean>`sequence > ${last?.sequence ?? archive?.last_sequence ?? 0} and sequence <= ${upTo}`)
        .orderBy('sequence')
        .limit(readAtOnce)
        .execute(),
    );
    for await (const page of created) for (const { id } of page) if (id !== null) ids.add(id);
  }
  return [...ids].sort(asBytes);
}

function byId(one: { id: string }, other: { id: string }): number {
  return asBytes(one.id, other.id);
}

/** As collation "C" sorts. Ids that are not ASCII are not Latchkey's. */
function asBytes(one: string, other: string): number {
  return Buffer.compare(Buffer.from(one), Buffer.from(other));
}

/** Without a value, JSON would leave out the member, and later events could not change it. */
function toText(state: State): string {
  return JSON.stringify(state, (_name, value: unknown) => (value === undefined ? null : value));
}

async function insertStates(tx: Tx, archiveId: ArchiveId, rows: readonly StoredState[]): Promise<void> {
  await sql`
    insert into history_archive_states (archive_id, kind, id, state)
    select ${archiveId}, kind, id, state
    from unnest(${rows.map(({ kind }) => kind)}::text[], ${rows.map(({ id }) => id)}::text[],
      ${rows.map(({ state }) => state)}::text[]) as stored (kind, id, state)`.execute(tx);
}

const removedAtOnce = 5_000;

const latestIds = sql`select distinct on (chain) id from history_archives order by chain, last_sequence desc`;

/**
 * Keeps other runs from deleting these states until the end of the transaction, in which their archive is stored.
 * @returns false if a run has deleted some of them
 */
export async function holdStates(tx: Tx, archive: Parameters<typeof areStatesSound>[1]): Promise<boolean> {
  await sql`lock table history_archive_states in share row exclusive mode`.execute(tx);
  return areStatesSound(tx, archive);
}

/** Deletes the states of interrupted runs, and those that a later archive of the chain has replaced. */
export async function removeStaleStates(db: Db): Promise<void> {
  const { rows } = await sql<{ id: ArchiveId }>`
    with recursive stored (id) as (
      select min(archive_id) from history_archive_states
      union all
      select (select min(archive_id) from history_archive_states where archive_id > stored.id) from stored
      where stored.id is not null
    )
    select id from stored where id is not null and id not in (${latestIds})`.execute(db);
  for (const { id } of rows) {
    await inBatches(removedAtOnce, async (count) => {
      const some = sql<string>`(select ctid from history_archive_states where archive_id = ${id} limit ${count})`;
      const { numAffectedRows } = await sql`
        delete from history_archive_states where ctid = any(array${some})
          and archive_id not in (${latestIds})`.execute(db);
      return Number(numAffectedRows ?? 0);
    });
  }
}
