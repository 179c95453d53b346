import { sql } from 'kysely';
import type { Db } from './client.ts';

/** What depends on one keyring entry, and would be lost without it. */
export interface KeyringUse {
  keyringId: string;
  /** Keys that are sealed with this entry. Without it they cannot be revealed. */
  sealedKeys: number;
  /** Imported keys whose token's SHA-256 is sealed with this entry. Without it their tags cannot be renewed. */
  sealedDigests: number;
  /** Webhooks whose secret is sealed with this entry. Without it nothing is sent to them. */
  webhooks: number;
  /** Pending claims that are sealed with this entry. Without it their codes do not work. */
  claims: number;
  /** Keys and live access tokens whose tag was made with this entry. Without it they are rejected. */
  taggedKeys: number;
  taggedTokens: number;
  /** Imported keys among them: argon2id cannot check them, so without the entry they are lost. */
  taggedImports: number;
  /** Compromised keys, of which only the tag is left until the purge. Without the entry they are not recognized. */
  bareTags: number;
  /** Keys and live access tokens whose row is authenticated with this entry. Without it they are rejected. */
  rows: number;
}

/** Counts the uses of each entry, by id. Reads every key. */
export async function countKeyringUse(db: Db): Promise<KeyringUse[]> {
  const { rows } = await sql<KeyringUse>`
    select keyring_id as "keyringId",
      (count(*) filter (where thing = 'sealed key'))::int as "sealedKeys",
      (count(*) filter (where thing = 'digest'))::int as "sealedDigests",
      (count(*) filter (where thing = 'webhook'))::int as "webhooks",
      (count(*) filter (where thing = 'claim'))::int as "claims",
      (count(*) filter (where thing in ('tagged key', 'tagged import')))::int as "taggedKeys",
      (count(*) filter (where thing = 'tagged import'))::int as "taggedImports",
      (count(*) filter (where thing = 'tagged token'))::int as "taggedTokens",
      (count(*) filter (where thing = 'bare tag'))::int as "bareTags",
      (count(*) filter (where thing = 'row'))::int as "rows"
    from (
      select sealed_keyring_id as keyring_id, 'sealed key' as thing from api_keys where sealed is not null
      union all
      select tag_keyring_id, case when num_nonnulls(argon2id_hash, digest_sealed) = 0 then 'bare tag'
        when origin = 'imported' then 'tagged import' else 'tagged key' end
      from api_keys where tag is not null
      union all
      select digest_keyring_id, 'digest' from api_keys where digest_sealed is not null
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
      union all
      select sealed_keyring_id, 'claim' from claims where ended_at is null
    ) as things
    group by keyring_id order by keyring_id`.execute(db);
  return rows;
}
