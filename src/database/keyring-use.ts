import { sql } from 'kysely';
import type { Db } from './client.ts';

/** What needs one keyring entry: all that is lost when the entry is taken out of the keyring. */
export interface KeyringUse {
  keyringId: string;
  /** Keys whose sealed value only this entry opens: without it they cannot be revealed. */
  sealedKeys: number;
  /** Webhooks with a secret that only this entry opens: without it nothing is sent to them. */
  webhooks: number;
  /** Keys, and live access tokens, whose tag was made under it: without it they are rejected. */
  taggedKeys: number;
  taggedTokens: number;
  /** Compromised keys of which only the tag is left: without the entry they are not recognised any more. */
  bareTags: number;
  /** Keys and live access tokens whose row it authenticates: without it they are rejected. */
  rows: number;
}

/** For every entry that something rests on, by id. Reads every key. */
export async function countKeyringUse(db: Db): Promise<KeyringUse[]> {
  const { rows } = await sql<KeyringUse>`
    select keyring_id as "keyringId",
      (count(*) filter (where thing = 'sealed key'))::int as "sealedKeys",
      (count(*) filter (where thing = 'webhook'))::int as "webhooks",
      (count(*) filter (where thing = 'tagged key'))::int as "taggedKeys",
      (count(*) filter (where thing = 'tagged token'))::int as "taggedTokens",
      (count(*) filter (where thing = 'bare tag'))::int as "bareTags",
      (count(*) filter (where thing = 'row'))::int as "rows"
    from (
      select sealed_keyring_id as keyring_id, 'sealed key' as thing from api_keys where sealed is not null
      union all
      select tag_keyring_id, case when argon2id_hash is null then 'bare tag' else 'tagged key' end
      from api_keys where tag is not null
      union all
      select tag_keyring_id, 'tagged token' from access_tokens where deleted_at is null
      union all
      select mac_keyring_id, 'row' from api_keys where mac is not null
      union all
      select mac_keyring_id, 'row' from access_tokens where deleted_at is null
      union all
      select sealed_keyring_id, 'webhook' from webhook_endpoints where sealed is not null
      union all
      select previous_sealed_keyring_id, 'webhook' from webhook_endpoints
      where previous_sealed is not null and previous_sealed_keyring_id <> sealed_keyring_id
    ) as things
    group by keyring_id order by keyring_id`.execute(db);
  return rows;
}
