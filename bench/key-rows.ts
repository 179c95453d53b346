import pg from 'pg';
import { keyMac } from '../src/credentials/record-mac.ts';
import type { Keyring } from '../src/crypto/keyring.ts';
import type { Secret } from '../src/crypto/secret.ts';
import { tagOf } from '../src/crypto/tag.ts';
import { mintToken } from '../src/crypto/token.ts';
import type { Actor } from '../src/domain/actor.ts';
import { idSuffix, newId, type OrganizationId, type PartnerId } from '../src/domain/ids.ts';

const slots = [1, 2];
const partnersPerBatch = 2_000;

const actor: Actor = { type: 'system', id: 'bench', name: 'bench', email: null };

interface KeyRow {
  id: string;
  partner_id: string;
  slot: number;
  tag: Buffer;
  mac: Buffer;
  last_four: string;
}

/**
 * Writes partners with two valid keys each directly into the database, because the API would hash each key by argon2id.
 * All keys share one argon2id hash, which no measurement reads.
 * @returns the plaintexts
 */
export async function dbAddKeys(
  url: string,
  options: { organizationId: OrganizationId; keyring: Keyring; argon2idHash: string; partners: number },
): Promise<string[]> {
  const { organizationId, keyring, argon2idHash } = options;
  const plaintexts: string[] = [];
  const client = new pg.Client({ connectionString: url });
  await client.connect();
  try {
    for (let remaining = options.partners; remaining > 0; remaining -= partnersPerBatch) {
      const partnerIds = Array.from({ length: Math.min(remaining, partnersPerBatch) }, () => newId('partner'));
      const keys = partnerIds.flatMap((partnerId) => slots.map((slot) => mintKey(options, partnerId, slot)));
      plaintexts.push(...keys.map(({ token }) => token.reveal()));
      await client.query(
        `insert into partners (id, organization_id, email, name, permissions, created_at, created_by)
         select id, $1, id || '@bench.example', 'Bench', '{read}', now(), $2 from unnest($3::text[]) id`,
        [organizationId, actor, partnerIds],
      );
      await client.query(
        `insert into api_keys (id, organization_id, partner_id, permission, slot, name, folded_name, tag, tag_keyring_id,
           argon2id_hash, mac, mac_keyring_id, last_four, allowed_ips, metadata, created_at, created_by)
         select key.id, $1, key.partner_id, 'read', key.slot, 'Bench', 'BENCH', key.tag, $2, $3, key.mac, $2, key.last_four, '{}',
           '{"environment":"bench"}', now(), $4
         from unnest($5::text[], $6::text[], $7::smallint[], $8::bytea[], $9::bytea[], $10::text[])
           as key (id, partner_id, slot, tag, mac, last_four)`,
        [
          organizationId,
          keyring.primary.id,
          argon2idHash,
          actor,
          ...(['id', 'partner_id', 'slot', 'tag', 'mac', 'last_four'] as const).map((column) =>
            keys.map(({ row }) => row[column]),
          ),
        ],
      );
    }
    await client.query('analyze');
  } finally {
    await client.end();
  }
  return plaintexts;
}
function mintKey(
  { organizationId, keyring, argon2idHash }: { organizationId: OrganizationId; keyring: Keyring; argon2idHash: string },
  partnerId: PartnerId,
  slot: number,
): { row: KeyRow; token: Secret } {
  const id = newId('key');
  const token = mintToken({ prefix: 'lk', kind: 'k', idSuffix: idSuffix(id) });
  const tag = tagOf(keyring.primary, token);
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
    argon2id_hash: argon2idHash,
  });
  return { row: { id, partner_id: partnerId, slot, tag, mac, last_four: token.reveal().slice(-4) }, token };
}

/** Creates well-formed keys with a valid checksum, for existing and for unknown ids. */
export function createInvalidKeys(
  validKeys: readonly string[],
  count: number,
): { wrongSecrets: string[]; unknownIds: string[] } {
  const mintFor = (suffix: string) => mintToken({ prefix: 'lk', kind: 'k', idSuffix: suffix }).reveal();
  return {
    wrongSecrets: validKeys.slice(0, count).map((key) => mintFor(key.slice(5, 31))),
    unknownIds: Array.from({ length: count }, () => mintFor(idSuffix(newId('key')))),
  };
}
