import { sql } from 'kysely';
import type { Db, Tx } from '../database/client.ts';
import type { ChainedEvent, HistoryAction } from '../domain/events.ts';
import type { OrganizationId } from '../domain/ids.ts';
import { chunksOf, pagesOf } from '../lib/batches.ts';
import { installationChain } from './chain.ts';
import {
  actionsOf,
  differencesOf,
  firstActionsOf,
  type RecordKind,
  type State,
  type StateDifference,
  stateAfter,
} from './state-replay.ts';
import {
  accessTokenRows,
  afterAllIds,
  keyRows,
  organizationRows,
  partnerRows,
  type RecordRow,
  type RowPage,
} from './state-rows.ts';
import { eventText, matches, matchesAny } from './store.ts';
import { readEvent } from './views.ts';

/** Records per snapshot, so that a snapshot reads a few thousand events at most. */
const recordsAtOnce = 200;
const createdAtOnce = 1_000;
const eventsAtOnce = 500;

/**
 * Compares the records of a chain with the state that their events give. Rows and events of each batch are read in one
 * snapshot, so concurrent changes are no differences. Memory is bounded by a batch, except for access tokens.
 * @returns batches, some empty, so that the caller can stop between them
 */
export async function* compareStates(db: Db, chain: string): AsyncGenerator<StateDifference[]> {
  const organizationId = chain === installationChain ? null : (chain as OrganizationId);
  yield await inSnapshot(db, async (tx) =>
    compareAll(tx, chain, {
      kind: 'access_token',
      rows: await accessTokenRows(tx, organizationId),
      idIn: ({ details }) => details?.['accessTokenId'],
    }),
  );
  if (organizationId === null) return;
  yield await inSnapshot(db, async (tx) =>
    compareAll(tx, chain, {
      kind: 'organization',
      rows: await organizationRows(tx, organizationId),
      idIn: () => chain,
    }),
  );
  yield* comparePaged(db, organizationId, {
    kind: 'partner',
    column: 'partner_id',
    table: 'partners',
    rowsOf: partnerRows,
  });
  yield* comparePaged(db, organizationId, { kind: 'key', column: 'key_id', table: 'api_keys', rowsOf: keyRows });
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
  signal?: AbortSignal,
): Promise<{ differences: Array<Omit<StateDifference, 'kind'>>; hasMore: boolean }> {
  const found: StateDifference[] = [];
  for await (const differences of compareStates(db, chain)) {
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

interface All {
  kind: RecordKind;
  rows: readonly RecordRow[];
  idIn: (event: ChainedEvent) => unknown;
}

/** For records whose events are found by their action, not by an indexed id column. */
async function compareAll(tx: Tx, chain: string, { kind, rows, idIn }: All): Promise<StateDifference[]> {
  const found = await tx
    .selectFrom('history')
    .select('sequence')
    .where(matchesAny(chain, 'action', actionsOf(kind)))
    .execute();
  const states = await replay(tx, { chain, kind, sequences: found.map(({ sequence }) => sequence) }, idIn);
  const tables = new Map(rows.map(({ id, state }) => [id, state]));
  return [...new Set([...states.keys(), ...tables.keys()])].flatMap((id) =>
    differencesOf(kind, id, states.get(id), tables.get(id)),
  );
}

interface Paged {
  kind: RecordKind;
  /** The column of `history` that identifies the record. */
  column: 'key_id' | 'partner_id';
  table: 'api_keys' | 'partners';
  rowsOf: (tx: Tx, organizationId: OrganizationId, page: RowPage) => Promise<RecordRow[]>;
}

/** First compares each row with its events, then looks for records whose row is missing. */
async function* comparePaged(db: Db, chain: OrganizationId, paged: Paged): AsyncGenerator<StateDifference[]> {
  const { kind, rowsOf } = paged;
  const pages = pagesOf<{ id: string; differences: StateDifference[] }>((last) =>
    inSnapshot(db, async (tx) => {
      const rows = await rowsOf(tx, chain, { before: last?.id ?? afterAllIds, limit: recordsAtOnce });
      const states = await statesOf(tx, chain, paged, rows);
      return rows.map(({ id, state }) => ({ id, differences: differencesOf(kind, id, states.get(id), state) }));
    }),
  );
  for await (const page of pages) yield page.flatMap(({ differences }) => differences);
  yield* findMissing(db, chain, paged);
}

async function statesOf(tx: Tx, chain: string, { kind, column }: Paged, rows: readonly RecordRow[]) {
  const found = await tx
    .selectFrom('history')
    .select(['sequence', `${column} as id`])
    .where(
      matchesAny(
        chain,
        column,
        rows.map(({ id }) => id),
      ),
    )
    .where('action', '=', anyOf<HistoryAction>(actionsOf(kind)))
    .execute();
  const idOf = new Map(found.map(({ sequence, id }) => [sequence, id]));
  return replay(tx, { chain, kind, sequences: [...idOf.keys()] }, (_event, sequence) => idOf.get(sequence));
}

interface CreatedRecord {
  sequence: number;
  id: string;
  is_there: boolean;
}

/** Records that were created according to history but have no row. The service never deletes rows, so somebody did. */
async function* findMissing(db: Db, chain: string, paged: Paged): AsyncGenerator<StateDifference[]> {
  for (const action of firstActionsOf(paged.kind)) yield* findMissingAfter(db, chain, paged, action);
}

async function* findMissingAfter(
  db: Db,
  chain: string,
  { kind, column, table }: Paged,
  action: HistoryAction,
): AsyncGenerator<StateDifference[]> {
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

/** The states of records after these events. Unreadable events are skipped. */
async function replay(
  tx: Tx,
  { chain, kind, sequences }: { chain: string; kind: RecordKind; sequences: number[] },
  idIn: (event: ChainedEvent, sequence: number) => unknown,
): Promise<Map<string, State>> {
  const states = new Map<string, State>();
  sequences.sort((one, other) => one - other);
  for (const some of chunksOf(sequences, eventsAtOnce)) {
    const rows = await tx
      .selectFrom('history')
      .select(['sequence', eventText.as('canonical')])
      .where('chain', '=', chain)
      .where('sequence', '=', anyOf(some))
      .orderBy('sequence')
      .execute();
    for (const { sequence, canonical } of rows) {
      const event = readEvent({ canonical });
      const id = event === undefined ? undefined : idIn(event, sequence);
      if (event === undefined || typeof id !== 'string') continue;
      const state = stateAfter(kind, states.get(id), event);
      if (state !== undefined) states.set(id, state);
    }
  }
  return states;
}

function anyOf<Value>(values: readonly Value[]) {
  return sql<Value>`any(${values})`;
}
