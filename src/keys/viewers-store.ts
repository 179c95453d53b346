import { sql } from 'kysely';
import type { Db } from '../database/client.ts';
import type { Actor, CreatorChain } from '../domain/actor.ts';
import type { KeyId, OrganizationId } from '../domain/ids.ts';
import type { StoredEvent } from '../history/chain.ts';
import { matches, storedEvent } from '../history/store.ts';
import { readEvent, toEventView } from '../history/views.ts';

export interface Look {
  /** RFC 3339, as the event has it. */
  at: string;
  reason: string | null;
  recipient: string | null;
}

/** Somebody who has looked at a key's plaintext. */
export interface Viewer {
  /** As it was at the last look. */
  admin: Actor;
  /** Who made the access token; null where there is no such token. */
  token_created_by: Actor | null;
  /** Null like `token_created_by`. */
  token_creator_chain: CreatorChain | null;
  times: number;
  /** RFC 3339, as the events have it. */
  first: string;
  last: string;
  looks: Look[];
  first_sequence: number;
}

/** The newest looks of a viewer and the first one, beside what is known of the viewer. */
type ReadLook = StoredEvent & Pick<Viewer, 'token_created_by' | 'token_creator_chain' | 'times' | 'first_sequence'>;

/**
 * From the canonical text of history, which outlives the key; its columns only find the rows. In the order of their
 * first looks, newest first: that order never changes, so a page that is read later misses nobody. One more than
 * `limit`.
 */
export async function listViewers(
  db: Db,
  organizationId: OrganizationId,
  keyId: KeyId,
  page: { limit: number; before: number | undefined; looksShown: number },
): Promise<Viewer[]> {
  const looks = [['key_id', keyId] as const, ['action', 'key.revealed'] as const];
  const { rows } = await sql<ReadLook>`
    select look.*, token.created_by as token_created_by, token.creator_chain as token_creator_chain, viewer.times,
      viewer.first_sequence
    from (
      select actor_id, count(*) as times, min(sequence) as first_sequence
      from history where ${matches(organizationId, looks)} group by actor_id
      having ${page.before === undefined ? sql`true` : sql`min(sequence) < ${page.before}`}
      order by first_sequence desc limit ${page.limit + 1}
    ) as viewer
    join lateral (
      (select ${storedEvent} from history
        where ${matches(organizationId, looks)} and actor_id = viewer.actor_id
        order by sequence desc limit ${page.looksShown})
      union
      select ${storedEvent} from history where chain = ${organizationId} and sequence = viewer.first_sequence
    ) as look on true
    left join access_tokens as token on token.id = viewer.actor_id
    order by viewer.first_sequence desc, look.sequence desc`.execute(db);
  const byViewer = new Map<number, ReadLook[]>();
  for (const row of rows) byViewer.set(row.first_sequence, [...(byViewer.get(row.first_sequence) ?? []), row]);
  return [...byViewer.values()].map((read) => toViewer(read, page.looksShown));
}

/** @param read newest first; the last one is the viewer's first look */
function toViewer(read: readonly ReadLook[], looksShown: number): Viewer {
  const newest = read[0];
  const oldest = read.at(-1);
  if (newest === undefined || oldest === undefined) throw new Error('a viewer without a look was read');
  const { token_created_by, token_creator_chain, times, first_sequence } = newest;
  const looks = read.slice(0, looksShown).map(toLook);
  const [first, last] = [toLook(oldest).at, toLook(newest).at];
  const admin = adminOf(newest);
  return { admin, token_created_by, token_creator_chain, times, first, last, looks, first_sequence };
}

function toLook(stored: StoredEvent): Look {
  const { at } = toEventView(stored);
  const details = readEvent(stored)?.details;
  const textOf = (value: unknown) => (typeof value === 'string' ? value : null);
  return { at: at ?? unknownTime, reason: textOf(details?.['reason']), recipient: textOf(details?.['recipient']) };
}

/** For an event that cannot be shown and whose time cannot be either. */
const unknownTime = new Date(0).toISOString();

/** Where the event cannot be shown, only the id is known. */
function adminOf(stored: StoredEvent): Actor {
  return readEvent(stored)?.actor ?? { type: 'admin', id: stored.actor_id, name: stored.actor_id, email: null };
}
