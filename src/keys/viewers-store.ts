import { sql } from 'kysely';
import type { Db } from '../database/client.ts';
import type { Actor, CreatorChain } from '../domain/actor.ts';
import type { KeyId, OrganizationId } from '../domain/ids.ts';
import type { StoredEvent } from '../history/chain.ts';
import { storedEvent } from '../history/store.ts';
import { readEvent, toEventView } from '../history/views.ts';

interface Reveal {
  /** RFC 3339, from the event. */
  at: string;
  reason: string | null;
  recipient: string | null;
}

/** An admin who has revealed a key. */
export interface Viewer {
  /** The admin at the time of the last reveal. */
  admin: Actor;
  /** The creator of the access token; null if there is no such token. */
  token_created_by: Actor | null;
  /** Null if `token_created_by` is null. */
  token_creator_chain: CreatorChain | null;
  times: number;
  /** RFC 3339, from the events. */
  first: string;
  last: string;
  looks: Reveal[];
  first_sequence: number;
}

/** A reveal event, with the totals of its viewer. */
type RevealRow = StoredEvent & Pick<Viewer, 'token_created_by' | 'token_creator_chain' | 'times' | 'first_sequence'>;

/**
 * Lists viewers from history, which outlives the key. Ordered by first reveal, newest first: that order never changes,
 * so no page misses a viewer. Returns up to `limit + 1`.
 */
export async function listViewers(
  db: Db,
  organizationId: OrganizationId,
  keyId: KeyId,
  page: { limit: number; before: number | undefined; revealsShown: number },
): Promise<Viewer[]> {
  // The action is a constant, because the index `history_reveals` has only events with this action.
  const reveals = sql`chain = ${organizationId} and key_id = ${keyId} and action = 'key.revealed'`;
  const { rows } = await sql<RevealRow>`
    select reveal.*, token.created_by as token_created_by, token.creator_chain as token_creator_chain, viewer.times,
      viewer.first_sequence
    from (
      select actor_id, count(*) as times, min(sequence) as first_sequence
      from history where ${reveals} group by actor_id
      having ${page.before === undefined ? sql`true` : sql`min(sequence) < ${page.before}`}
      order by first_sequence desc limit ${page.limit + 1}
    ) as viewer
    join lateral (
      (select ${storedEvent} from history
        where ${reveals} and actor_id = viewer.actor_id
        order by sequence desc limit ${page.revealsShown})
      union
      select ${storedEvent} from history where chain = ${organizationId} and sequence = viewer.first_sequence
    ) as reveal on true
    left join access_tokens as token on token.id = viewer.actor_id
    order by viewer.first_sequence desc, reveal.sequence desc`.execute(db);
  const byViewer = new Map<number, RevealRow[]>();
  for (const row of rows) byViewer.set(row.first_sequence, [...(byViewer.get(row.first_sequence) ?? []), row]);
  return [...byViewer.values()].map((read) => toViewer(read, page.revealsShown));
}

/** @param read newest first; the last one is the viewer's first reveal */
function toViewer(read: readonly RevealRow[], revealsShown: number): Viewer {
  const newest = read[0];
  const oldest = read.at(-1);
  if (newest === undefined || oldest === undefined) throw new Error('A viewer without a reveal was read');
  const { token_created_by, token_creator_chain, times, first_sequence } = newest;
  const looks = read.slice(0, revealsShown).map(toReveal);
  const [first, last] = [toReveal(oldest).at, toReveal(newest).at];
  const admin = adminOf(newest);
  return { admin, token_created_by, token_creator_chain, times, first, last, looks, first_sequence };
}

function toReveal(stored: StoredEvent): Reveal {
  const { at } = toEventView(stored);
  const details = readEvent(stored)?.details;
  const textOf = (value: unknown) => (typeof value === 'string' ? value : null);
  return { at: at ?? unknownTime, reason: textOf(details?.['reason']), recipient: textOf(details?.['recipient']) };
}

/** Used for an unreadable event without a valid time. */
const unknownTime = new Date(0).toISOString();

/** An unreadable event only has the id of its actor. */
function adminOf(stored: StoredEvent): Actor {
  return readEvent(stored)?.actor ?? { type: 'admin', id: stored.actor_id, name: stored.actor_id, email: null };
}
