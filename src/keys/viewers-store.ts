import { sql } from 'kysely';
import type { Actor, CreatorChain } from '../core/actor.ts';
import type { KeyId, OrganizationId } from '../core/ids.ts';
import type { Db } from '../db/client.ts';

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
  const isLook = sql`chain = ${organizationId} and key_id = ${keyId} and action = 'key.revealed'`;
  const { rows } = await sql<Viewer>`
    select last_look.event -> 'actor' as admin, token.created_by as token_created_by,
      token.creator_chain as token_creator_chain, viewer.times,
      (select canonical::jsonb ->> 'at' from history
        where chain = ${organizationId} and sequence = viewer.first_sequence) as first,
      last_look.event ->> 'at' as last, shown.looks, viewer.first_sequence
    from (
      select actor_id, count(*) as times, min(sequence) as first_sequence, max(sequence) as last_sequence
      from history where ${isLook} group by actor_id
    ) as viewer
    join lateral (
      select canonical::jsonb as event from history
      where chain = ${organizationId} and sequence = viewer.last_sequence
    ) as last_look on true
    join lateral (
      select jsonb_agg(jsonb_build_object('at', event -> 'at', 'reason', event -> 'details' -> 'reason',
        'recipient', event -> 'details' -> 'recipient') order by sequence desc) as looks
      from (
        select sequence, canonical::jsonb as event from history
        where ${isLook} and actor_id = viewer.actor_id order by sequence desc limit ${page.looksShown}
      ) as newest
    ) as shown on true
    left join access_tokens as token on token.id = viewer.actor_id
    where ${page.before === undefined ? sql`true` : sql`viewer.first_sequence < ${page.before}`}
    order by viewer.first_sequence desc
    limit ${page.limit + 1}`.execute(db);
  return rows;
}
