import { sql } from 'kysely';
import type { ActorContext, Work } from '../database/work.ts';
import type { ChainedEvent, Happening } from '../domain/events.ts';
import { newId } from '../domain/ids.ts';
import { chainOf, toCanonical } from './chain.ts';

/**
 * Records what happened in the transaction in which it happens: either both are there after the commit or neither.
 * The rows are appended just before the commit, because the chain's head lets only one writer through at a time.
 */
export function record(work: Work, happening: Happening): void {
  work.changed.add(subjectOf(work, happening));
  work.recorded.push(happening.action);
  const waiting = happeningsOf.get(work);
  if (waiting !== undefined) {
    waiting.push(happening);
    return;
  }
  const happenings = [happening];
  happeningsOf.set(work, happenings);
  work.beforeCommit.push(() => append(work, happenings));
}

/** The id of the record that an event is about. */
function subjectOf({ by }: Work, { keyId, partnerId, details }: Happening): string {
  for (const id of [details['accessTokenId'], details['webhookId']]) if (typeof id === 'string') return id;
  return keyId ?? partnerId ?? by.organizationId ?? 'installation';
}

const happeningsOf = new WeakMap<Work, Happening[]>();

async function append(work: Work, happenings: Happening[]): Promise<void> {
  const { tx, by } = work;
  const chain = chainOf(by.organizationId);
  const begun = await sql<{ next_sequence: number; at_ms: number }>`
    select next_sequence, at_ms from history_begin(${chain})`.execute(tx);
  const place = begun.rows[0];
  if (place === undefined) throw new Error('history_begin returned no row');
  const at = new Date(place.at_ms).toISOString();
  const events = happenings.map((happening, index) => toEvent(by, happening, place.next_sequence + index, at));
  await sql`
    select history_append(${chain}, event.canonical)
    from unnest(${events.map(toCanonical)}::text[]) with ordinality as event (canonical, place) order by event.place`.execute(
    tx,
  );
  await work.onAppended(work, events);
}

function toEvent(by: ActorContext, happening: Happening, sequence: number, at: string): ChainedEvent {
  return {
    id: newId('event'),
    organizationId: by.organizationId,
    sequence,
    at,
    action: happening.action,
    actor: by.actor,
    keyId: happening.keyId ?? null,
    partnerId: happening.partnerId ?? null,
    request: by.request,
    details: happening.details,
  };
}
