import { sql } from 'kysely';
import type { Keyring } from '../crypto/keyring.ts';
import type { Db, Tx } from '../database/client.ts';
import type { ChainedEvent, HistoryAction } from '../domain/events.ts';
import { chunksOf } from '../lib/batches.ts';
import { type Archive, readLastArchive } from './archives/archive.ts';
import { parseObject } from './chain.ts';
import { actionsOf, completed, type RecordKind, type State, stateAfter } from './state-replay.ts';
import { eventText, matchesAny } from './store.ts';
import { readEvent } from './views.ts';

// The states of records according to history: what an archive has stored, and the events after it.

const eventsAtOnce = 500;

/** An invented event may have a longer id, which would not fit the index of archived states. */
const longestId = 100;

/** The events that a replay covers: those of a chain after its last archive. */
export interface Recorded {
  chain: string;
  archive: Archive | undefined;
  /** The last event of the replay. */
  upTo: number;
}

/** Read this in the snapshot of the replay: a later archive has other states and fewer events. */
export async function recordedIn(db: Db, chain: string, keyring: Keyring | undefined): Promise<Recorded> {
  return { chain, archive: await readLastArchive(db, chain, keyring), upTo: Number.MAX_SAFE_INTEGER };
}

/** Kinds of few records, whose events are found by their action. */
export type SmallKind = Exclude<RecordKind, PagedKind>;

/** Kinds of many records, whose events are found by the column of `history` that identifies the record. */
export type PagedKind = keyof typeof columnOf;

export const columnOf = { partner: 'partner_id', key: 'key_id' } as const;

const idIn: Record<SmallKind, (event: ChainedEvent) => unknown> = {
  access_token: ({ details }) => details?.['accessTokenId'],
  history_archive: ({ details }) => details?.['archiveId'],
  organization: ({ organizationId }) => organizationId,
};

/** The states of all records of a kind. */
export async function statesOfAll(tx: Tx, recorded: Recorded, kind: SmallKind): Promise<Map<string, State>> {
  const found = await tx
    .selectFrom('history')
    .select('sequence')
    .where(matchesAny(recorded.chain, 'action', actionsOf(kind)))
    .where(isCovered(recorded))
    .execute();
  const states = await archivedStates(tx, recorded.archive, kind);
  const sequences = found.map(({ sequence }) => sequence);
  return replay(tx, { chain: recorded.chain, kind, sequences, states }, idIn[kind]);
}

/** The states of these records. */
export async function statesOf(
  tx: Tx,
  recorded: Recorded,
  kind: PagedKind,
  ids: readonly string[],
): Promise<Map<string, State>> {
  const column = columnOf[kind];
  const found = await tx
    .selectFrom('history')
    .select(['sequence', `${column} as id`])
    .where(matchesAny(recorded.chain, column, ids))
    .where('action', '=', anyOf<HistoryAction>(actionsOf(kind)))
    .where(isCovered(recorded))
    .execute();
  const idOf = new Map(found.map(({ sequence, id }) => [sequence, id]));
  const states = await archivedStates(tx, recorded.archive, kind, ids);
  const sequences = [...idOf.keys()];
  return replay(tx, { chain: recorded.chain, kind, sequences, states }, (_event, sequence) => idOf.get(sequence));
}

function isCovered({ archive, upTo }: Recorded) {
  return sql<boolean>`sequence > ${archive?.last_sequence ?? 0} and sequence <= ${upTo}`;
}

/** @param ids undefined: all */
async function archivedStates(
  tx: Tx,
  archive: Archive | undefined,
  kind: RecordKind,
  ids?: readonly string[],
): Promise<Map<string, State>> {
  if (archive === undefined) return new Map();
  const all = tx
    .selectFrom('history_archive_states')
    .select(['id', 'state'])
    .where('archive_id', '=', archive.id)
    .where('kind', '=', kind);
  const rows = await (ids === undefined ? all : all.where('id', '=', anyOf(ids))).execute();
  return new Map(rows.flatMap(({ id, state }) => toEntry(kind, id, state)));
}

/** Empty for a text that was written by hand and is no object: the digest of the states reports it. */
function toEntry(kind: RecordKind, id: string, text: string): Array<[string, State]> {
  const state = parseObject(text);
  return state === undefined ? [] : [[id, completed(kind, state)]];
}

/** The states of records after these events. Unreadable events are skipped. */
async function replay(
  tx: Tx,
  given: { chain: string; kind: RecordKind; sequences: number[]; states: Map<string, State> },
  idOf: (event: ChainedEvent, sequence: number) => unknown,
): Promise<Map<string, State>> {
  const { chain, kind, sequences, states } = given;
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
      const found = event === undefined ? undefined : idOf(event, sequence);
      if (event === undefined || typeof found !== 'string') continue;
      const id = found.slice(0, longestId).toWellFormed();
      const state = stateAfter(kind, states.get(id), event);
      if (state !== undefined) states.set(id, state);
    }
  }
  return states;
}

export function anyOf<Value>(values: readonly Value[]) {
  return sql<Value>`any(${values})`;
}
