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
  /** Archives of history that are authenticated with this entry. Without it their chains do not verify without the files. */
  archives: number;
}

/** Counts the uses of each entry, by id. Reads every key once. */
export async function countKeyringUse(db: Db): Promise<KeyringUse[]> {
  const number = (...things: string[]) => sql`coalesce(sum(number) filter (where thing = any(${things})), 0)::int`;
  const { rows } = await sql<KeyringUse>`
    with keys as materialized (
      select sealed_keyring_id, digest_keyring_id, tag_keyring_id, mac_keyring_id, origin,
        num_nonnulls(argon2id_hash, digest_sealed) = 0 as is_bare, count(*) as number
      from api_keys group by 1, 2, 3, 4, 5, 6
    )
    select keyring_id as "keyringId",
      ${number('sealed key')} as "sealedKeys",
      ${number('digest')} as "sealedDigests",
      ${number('webhook')} as "webhooks",
      ${number('claim')} as "claims",
      ${number('tagged key', 'tagged import')} as "taggedKeys",
      ${number('tagged import')} as "taggedImports",
      ${number('tagged token')} as "taggedTokens",
      ${number('bare tag')} as "bareTags",
      ${number('row')} as "rows",
      ${number('archive')} as "archives"
    from (
      select sealed_keyring_id as keyring_id, 'sealed key' as thing, number from keys
      union all
      select tag_keyring_id,
        case when is_bare then 'bare tag' when origin = 'imported' then 'tagged import' else 'tagged key' end, number
      from keys
      union all
      select digest_keyring_id, 'digest', number from keys
      union all
      select mac_keyring_id, 'row', number from keys
      union all
      select tag_keyring_id, 'tagged token', 1 from access_tokens where deleted_at is null
      union all
      select mac_keyring_id, 'row', 1 from access_tokens where deleted_at is null
      union all
      select sealed_keyring_id, 'webhook', 1 from webhook_endpoints where sealed is not null
      union all
      select previous_sealed_keyring_id, 'webhook', 1 from webhook_endpoints
      where previous_sealed is not null and previous_sealed_keyring_id <> sealed_keyring_id
      union all
      select sealed_keyring_id, 'claim', 1 from claims where ended_at is null
      union all
      select mac_keyring_id, 'archive', 1 from history_archives
    ) as things where keyring_id is not null
    group by keyring_id order by keyring_id`.execute(db);
  return rows;
}
