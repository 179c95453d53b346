import { dbQuery } from './database.ts';

/**
 * Many keys for measurements of filters, inserted by SQL; they cannot be verified. Each thousandth key differs from the
 * others in every member. Creation is spread over two years.
 */
export async function dbAddKeyCrowd(superuserUrl: string, organizationId: string, count: number): Promise<void> {
  const creator = `'{"type":"system","id":"crowd","name":"crowd","email":null}'`;
  const id = (kind: string, number: string) => `'${kind}_01a' || lpad(to_hex(${number}), 23, '0')`;
  await dbQuery(
    superuserUrl,
    `insert into partners (id, organization_id, email, permissions, created_at, created_by)
     select ${id('partner', 'n')}, $1, n || '@crowd.example', '{read,write}', now() - interval '3 years', ${creator}
     from generate_series(0, $2::int / 4) as n`,
    [organizationId, count],
  );
  await dbQuery(
    superuserUrl,
    `insert into api_keys (id, organization_id, partner_id, permission, slot, name, folded_name, tag, tag_keyring_id,
       argon2id_hash, mac, mac_keyring_id, last_four, expires_at, allowed_ips, scopes, metadata, created_at, created_by,
       suspended_at, deleted_at, delete_reason)
     select ${id('key', 'n')}, $1, ${id('partner', 'n / 4')}, case n / 2 % 2 when 0 then 'read' else 'write' end, n % 2 + 1,
       kind || ' ' || n, upper(kind) || ' ' || n, sha256(n::text::bytea), 'none', repeat('x', 97), sha256(n::text::bytea),
       'none', left(kind, 4), case n % 1000 when 0 then now() + interval '1 day' else now() + interval '1 year' end, '{}',
       array[kind || ':read', 'any'], json_build_object('kind', kind, 'number', n), now() - interval '2 years' * ($2::int - n) / $2, ${creator},
       case n % 1000 when 1 then now() end, case n % 1000 when 2 then now() end, case n % 1000 when 2 then 'other' end
     from (select n, case n % 1000 when 0 then 'rare' else 'common' end as kind from generate_series(0, $2::int - 1) as n) as key`,
    [organizationId, count],
  );
  // The rare keys were never used.
  await dbQuery(
    superuserUrl,
    `update key_last_uses set last_used_at = now() - interval '1 day' from api_keys as key
     where key.id = key_id and key.organization_id = $1 and key.name like 'common%'`,
    [organizationId],
  );
}

const dayMs = 86_400_000;
const at = (days: number) => new Date(Date.now() + days * dayMs).toISOString();

/** Values of each filter for keys of `dbAddKeyCrowd`: they match no key, each thousandth, and almost all. */
export const crowdFilters: Record<string, Record<'nothing' | 'few' | 'almost all', string>> = {
  name: { nothing: 'none', few: 'RARE', 'almost all': 'Common' },
  lastFour: { nothing: 'none', few: 'rare', 'almost all': 'comm' },
  expiresBefore: { nothing: at(0), few: at(2), 'almost all': at(700) },
  createdBefore: { nothing: at(-900), few: at(-729.3), 'almost all': at(-1) },
  lastUsedBefore: { nothing: at(-900), few: at(-2), 'almost all': at(-0.5) },
  scope: { nothing: 'none', few: 'rare:read', 'almost all': 'common:read' },
  'metadata.kind': { nothing: 'none', few: 'rare', 'almost all': 'common' },
  'metadata.number': { nothing: '-1', few: '7', 'almost all': '8' },
};
