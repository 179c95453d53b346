import { sql } from 'kysely';
import type { ActorContext, Work } from '../database/work.ts';
import type { ChainedEvent, EventInput } from '../domain/events.ts';
import { newId } from '../domain/ids.ts';
import { chunksOf } from '../lib/batches.ts';
import { chainOf, toCanonical } from './chain.ts';

/**
 * Records an event in the transaction of its change, so that both are committed or neither. Events are appended just
 * before the commit, because the lock on the chain's head admits one writer at a time.
 */
export function record(work: Work, input: EventInput): void {
  work.changed.add(subjectOf(work, input));
  work.recorded.push(input.action);
  const waiting = pendingInputs.get(work);
  if (waiting !== undefined) {
    waiting.push(input);
    return;
  }
  const inputs = [input];
  pendingInputs.set(work, inputs);
  work.beforeCommit.push(() => append(work, inputs));
}

/** The id of the record that the event is about. */
function subjectOf({ by }: Work, { keyId, partnerId, details }: EventInput): string {
  for (const id of [details['accessTokenId'], details['webhookId']]) if (typeof id === 'string') return id;
  return keyId ?? partnerId ?? by.organizationId ?? 'installation';
}

const pendingInputs = new WeakMap<Work, EventInput[]>();

/** Each statement stays far below the time limit of a query. */
const appendedAtOnce = 100;

async function append(work: Work, inputs: EventInput[]): Promise<void> {
  const { tx, by } = work;
  const chain = chainOf(by.organizationId);
  const begun = await sql<{ next_sequence: number; at_ms: number }>`
    select next_sequence, at_ms from history_begin(${chain})`.execute(tx);
  const place = begun.rows[0];
  if (place === undefined) throw new Error('history_begin returned no row');
  const at = new Date(place.at_ms).toISOString();
  const events = inputs.map((input, index) => toEvent(by, input, place.next_sequence + index, at));
  for (const some of chunksOf(events, appendedAtOnce)) {
    await sql`
      select history_append(${chain}, event.canonical)
      from unnest(${some.map(toCanonical)}::text[]) with ordinality as event (canonical, place) order by event.place`.execute(
      tx,
    );
  }
  await work.onAppended(work, events);
}

function toEvent(by: ActorContext, input: EventInput, sequence: number, at: string): ChainedEvent {
  return {
    id: newId('event'),
    organizationId: by.organizationId,
    sequence,
    at,
    action: input.action,
    actor: by.actor,
    keyId: input.keyId ?? null,
    partnerId: input.partnerId ?? null,
    request: by.request,
    details: input.details,
  };
}
