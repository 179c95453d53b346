import { sql } from 'kysely';
import type { Keyring } from '../crypto/keyring.ts';
import type { Db, Tx } from '../database/client.ts';
import type { HistoryAction } from '../domain/events.ts';
import type { OrganizationId } from '../domain/ids.ts';
import { pagesOf } from '../lib/batches.ts';
import { readLastArchive } from './archives/archive.ts';
import { createStatesDigest, listArchivedStates } from './archives/states.ts';
import { installationChain } from './chain.ts';
import { columnOf, type PagedKind, recordedIn, type SmallKind, statesOf, statesOfAll } from './recorded-states.ts';
import { differencesOf, firstActionsOf, type RecordKind, type StateDifference } from './state-replay.ts';
import {
  accessTokenRows,
  afterAllIds,
  archiveRows,
  keyRows,
  organizationRows,
  partnerRows,
  type RecordRow,
  type RowPage,
} from './state-rows.ts';
import { matches } from './store.ts';

/** Records per snapshot, so that a snapshot reads a few thousand events at most. */
const recordsAtOnce = 200;
const createdAtOnce = 1_000;

/**
 * Compares the records of a chain with the state that their events give. Rows and events of each batch are read in one
 * snapshot, so concurrent changes are no differences. Memory is bounded by a batch, except for access tokens.
 * @returns batches, some empty, so that the caller can stop between them
 */
export async function* compareStates(
  db: Db,
  chain: string,
  keyring: Keyring | undefined,
): AsyncGenerator<StateDifference[]> {
  const deps = { db, chain, keyring };
  const organizationId = chain === installationChain ? null : (chain as OrganizationId);
  yield await compareAll(deps, 'access_token', (tx) => accessTokenRows(tx, organizationId));
  if (organizationId === null) yield await compareAll(deps, 'history_archive', archiveRows);
  else {
    yield await compareAll(deps, 'organization', (tx) => organizationRows(tx, organizationId));
    yield* comparePaged(deps, { kind: 'partner', table: 'partners', rowsOf: partnerRows });
    yield* comparePaged(deps, { kind: 'key', table: 'api_keys', rowsOf: keyRows });
  }
  yield* compareArchived(deps);
}

interface Compared {
  db: Db;
  chain: string;
  keyring: Keyring | undefined;
}

/** The number of differences that a reply shows. */
const shownAtMost = 100;

/**
 * The first differences of a chain, and whether there are more.
 * @param signal stops between two snapshots
 */
export async function firstDifferences(
  db: Db,
  chain: string,
  keyring: Keyring | undefined,
  signal?: AbortSignal,
): Promise<{ differences: Array<Omit<StateDifference, 'kind'>>; hasMore: boolean }> {
  const found: StateDifference[] = [];
  for await (const differences of compareStates(db, chain, keyring)) {
    signal?.throwIfAborted();
    found.push(...differences);
    if (found.length > shownAtMost) break;
  }
  return {
    differences: found.slice(0, shownAtMost).map(({ kind, ...difference }) => difference),
    hasMore: found.length > shownAtMost,
  };
}

function inSnapshot<Result>(db: Db, read: (tx: Tx) => Promise<Result>): Promise<Result> {
  return db.transaction().setIsolationLevel('repeatable read').setAccessMode('read only').execute(read);
}

async function compareAll(
  { db, chain, keyring }: Compared,
  kind: SmallKind,
  rowsOf: (tx: Tx) => Promise<RecordRow[]>,
): Promise<StateDifference[]> {
  return inSnapshot(db, async (tx) => {
    const tables = new Map((await rowsOf(tx)).map(({ id, state }) => [id, state]));
    const states = await statesOfAll(tx, await recordedIn(tx, chain, keyring), kind);
    return [...new Set([...states.keys(), ...tables.keys()])].flatMap((id) =>
      differencesOf(kind, id, states.get(id), tables.get(id)),
    );
  });
}

interface Paged {
  kind: PagedKind;
  table: 'api_keys' | 'partners';
  rowsOf: (tx: Tx, organizationId: OrganizationId, page: RowPage) => Promise<RecordRow[]>;
}

/** First compares each row with its events, then looks for records whose row is missing. */
async function* comparePaged(compared: Compared, paged: Paged): AsyncGenerator<StateDifference[]> {
  const { db, chain, keyring } = compared;
  const { kind, rowsOf } = paged;
  const pages = pagesOf<{ id: string; differences: StateDifference[] }>((last) =>
    inSnapshot(db, async (tx) => {
      const page = { before: last?.id ?? afterAllIds, limit: recordsAtOnce };
      const rows = await rowsOf(tx, chain as OrganizationId, page);
      const ids = rows.map(({ id }) => id);
      const states = await statesOf(tx, await recordedIn(tx, chain, keyring), kind, ids);
      return rows.map(({ id, state }) => ({ id, differences: differencesOf(kind, id, states.get(id), state) }));
    }),
  );
  for await (const page of pages) yield page.flatMap(({ differences }) => differences);
  yield* findMissing(compared, paged);
}

interface CreatedRecord {
  sequence: number;
  id: string;
  is_there: boolean;
}

/** Records that were created according to history but have no row. The service never deletes rows, so somebody did. */
async function* findMissing(compared: Compared, paged: Paged): AsyncGenerator<StateDifference[]> {
  for (const action of firstActionsOf(paged.kind)) yield* findMissingAfter(compared, paged, action);
}

async function* findMissingAfter(
  { db, chain }: Compared,
  { kind, table }: Paged,
  action: HistoryAction,
): AsyncGenerator<StateDifference[]> {
  const column = columnOf[kind];
  const pages = pagesOf<CreatedRecord>(async (last) => {
    const { rows } = await sql<CreatedRecord>`
      select sequence, ${sql.ref(column)} as id, exists (
        select from ${sql.table(table)} as record
        where record.id = history.${sql.ref(column)} and record.organization_id = ${chain}
      ) as is_there
      from history where ${matches(chain, [['action', action]])} and ${sql.ref(column)} is not null
        and sequence < ${last?.sequence ?? Number.MAX_SAFE_INTEGER}
      order by sequence desc limit ${createdAtOnce}`.execute(db);
    return rows;
  });
  for await (const page of pages) {
    yield page.filter((row) => !row.is_there).flatMap(({ id }) => differencesOf(kind, id, {}, undefined));
  }
}

/** Compares the stored states of archived records with their digest, and finds those whose row is missing. */
async function* compareArchived({ db, chain, keyring }: Compared): AsyncGenerator<StateDifference[]> {
  const archive = await readLastArchive(db, chain, keyring);
  if (archive === undefined) return;
  const digest = createStatesDigest();
  for await (const page of listArchivedStates(db, archive.id, chain)) {
    digest.add(page);
    const missing = page.filter((stored) => !stored.is_there);
    yield missing.flatMap(({ kind, id }) => differencesOf(kind as RecordKind, id, {}, undefined));
  }
  const found = digest.end();
  if (found.equals(archive.states_sha256)) return;
  // Another archive may have replaced the states meanwhile.
  if ((await readLastArchive(db, chain, keyring))?.id !== archive.id) return;
  const sides = { history: archive.states_sha256.toString('hex'), table: found.toString('hex') };
  yield [{ kind: 'history_archive', id: archive.id, member: 'statesSha256', ...sides }];
}
