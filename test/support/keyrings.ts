import { keyMac } from '../../src/credentials/record-mac.ts';
import { type Keyring, parseKeyring } from '../../src/crypto/keyring.ts';
import { seal } from '../../src/crypto/seal.ts';
import { tagOf } from '../../src/crypto/tag.ts';
import { mintToken } from '../../src/crypto/token.ts';
import { idSuffix, type KeyId, newId, type OrganizationId, type PartnerId } from '../../src/domain/ids.ts';
import { sealBinding } from '../../src/keys/mint.ts';
import { dbQuery } from './database.ts';

/** A keyring entry as text; the same id has the same bytes. */
export function entryText(id: string): string {
  return `${id}:${Buffer.alloc(32, id).toString('base64')}`;
}

export function keyringText(...ids: string[]): string {
  return ids.map(entryText).join(',');
}

export function keyringOf(...ids: string[]): Keyring {
  return parseKeyring(keyringText(...ids));
}

export interface WrittenKey {
  id: KeyId;
  partnerId: PartnerId;
  plaintext: string;
}

/** Inserts many live keys, each of a new partner, sealed and tagged under the keyring's primary entry. */
export async function dbWriteKeys(
  url: string,
  keyring: Keyring,
  organizationId: OrganizationId,
  count: number,
): Promise<WrittenKey[]> {
  const written: WrittenKey[] = [];
  const columns = { sealed: [] as Buffer[], tags: [] as Buffer[], macs: [] as Buffer[] };
  for (let index = 0; index < count; index++) {
    const id = newId('key');
    const plaintext = mintToken({ prefix: 'lk', kind: 'k', idSuffix: idSuffix(id) });
    const partnerId = newId('partner');
    written.push({ id, partnerId, plaintext: plaintext.reveal() });
    columns.sealed.push(seal(keyring, plaintext, sealBinding(organizationId, id)).sealed);
    const tag = tagOf(keyring.primary, plaintext);
    columns.tags.push(tag);
    const { mac } = keyMac(keyring, {
      id,
      organization_id: organizationId,
      partner_id: partnerId,
      permission: 'read',
      origin: 'created',
      expires_at: null,
      allowed_ips: [],
      scopes: [],
      rate_limit_requests: null,
      rate_limit_window_seconds: null,
      limit_bucket_id: null,
      delete_reason: null,
      tag,
      tag_keyring_id: keyring.primary.id,
      argon2id_hash: 'none',
    });
    columns.macs.push(mac);
  }
  const creator = JSON.stringify({ type: 'system', id: 'test', name: 'test', email: null });
  const partnerIds = written.map(({ partnerId }) => partnerId);
  await dbQuery(
    url,
    `insert into partners (id, organization_id, email, permissions, created_at, created_by)
     select id, $1, id || '@p.example', array['read'], now(), $3 from unnest($2::text[]) as partner (id)`,
    [organizationId, partnerIds, creator],
  );
  await dbQuery(
    url,
    `insert into api_keys (id, organization_id, partner_id, permission, slot, tag, tag_keyring_id, argon2id_hash,
       mac, mac_keyring_id, sealed, sealed_keyring_id, last_four, allowed_ips, metadata, created_at, created_by)
     select id, $1, partner_id, 'read', 1, tag, $2, 'none', mac, $2, sealed, $2, right(id, 4), '{}', '{}', now(), $7
     from unnest($3::text[], $4::text[], $5::bytea[], $6::bytea[], $8::bytea[]) as key (id, partner_id, tag, sealed, mac)`,
    [
      organizationId,
      keyring.primary.id,
      written.map(({ id }) => id),
      partnerIds,
      columns.tags,
      columns.sealed,
      creator,
      columns.macs,
    ],
  );
  return written;
}
