import { Secret } from '../src/crypto/secret.ts';
import { mintToken } from '../src/crypto/token.ts';
import { confirmInstallation } from '../src/database/installation.ts';
import { idSuffix, newId } from '../src/domain/ids.ts';
import { type Json, startService } from './support/app.ts';
import { dbQuery } from './support/database.ts';
import { keyringOf, keyringText } from './support/keyrings.ts';
import { eventually, runEntry } from './support/process.ts';
import { t } from './support/tap.ts';

// An attacker has the service's database role, but not the keyring. Each statement is rejected, has no effect on
// verdicts, or is reported by `latchkey doctor` or `latchkey audit verify`.

type Outcome =
  /** The database rejects the statement. */
  | 'refused'
  /** The statement runs, and the credential that it should help does not work. */
  | 'ineffective'
  /** The statement runs, the credential does not work, and doctor names the row. */
  | 'doctor'
  /** The statement runs, and `latchkey audit verify` names the row. */
  | 'audit';

interface Attempt {
  what: string;
  sql: string;
  values?: unknown[];
  outcome: Outcome;
  /** What doctor or audit verify must name. */
  names?: string;
  /** A credential that must not work after the statement. */
  key?: string;
  token?: string;
}

const newOrganization = newId('org');

t.test('without the keyring, the database role cannot forge, extend, revive, backdate, poison or flood', async (t) => {
  const service = await startService(t, { keyring: keyringOf('k1') });
  const { urls, admin, operator, hasher, organizationId } = service;
  await confirmInstallation(service.client.db, { tokenPrefix: 'lk', keyring: service.keyring });
  const { body: other } = await operator.post('/v1/organizations', { name: 'Other' });
  let partners = 0;
  const partner = async (permissions = ['read']): Promise<Json> =>
    (await admin.post('/v1/partners', { email: `p${partners++}@p.example`, permissions })).body;
  const partnerKey = async (settings = {}): Promise<Json> => {
    const [key] = (await partner()).keys;
    return { ...key, ...((await admin.patch(`/v1/keys/${key.id}`, settings)).body as object), key: key.key };
  };
  const token = async (input = {}): Promise<Json> =>
    (
      await admin.post('/v1/access-tokens', {
        role: 'admin',
        name: 'N',
        email: 'n@p.example',
        scopes: ['read'],
        ...input,
      })
    ).body;
  const soon = () => new Date(Date.now() + 1_500).toISOString();
  const mint = async (kind: 'k' | 'a' | 'o', prefix: 'key' | 'token') => {
    const id = newId(prefix);
    const plaintext = mintToken({ prefix: 'lk', kind, idSuffix: idSuffix(id) }).reveal();
    return { id, plaintext, hash: await hasher.hash(new Secret(plaintext)) };
  };
  const insertToken = (copied: string) => `
    insert into access_tokens (id, organization_id, role, scopes, name, email, tag, tag_keyring_id, argon2id_hash, mac,
      mac_keyring_id, last_four, created_at, created_by, creator_chain)
    select $1, ${copied}, name, 'x@p.example', tag, $2, $3, mac, $2, last_four, created_at, created_by, creator_chain
    from access_tokens where role = 'admin' limit 1`;
  const insertKey = `
    insert into api_keys (id, organization_id, permission, slot, tag, tag_keyring_id, argon2id_hash, mac, mac_keyring_id,
      last_four, allowed_ips, metadata, created_at, created_by)
    values ($1, $2, 'read_write', $3, $4, $5, $6, $4, $5, 'abcd', '{}', '{}', now(), '{"type":"system","id":"x","name":"x","email":null}')`;
  const bytes = Buffer.alloc(32, 1);
  const [adminUnderUnknownEntry, adminUnderKnownEntry, globalOperator] = [
    await mint('a', 'token'),
    await mint('a', 'token'),
    await mint('o', 'token'),
  ];
  const [keyUnderUnknownEntry, keyUnderKnownEntry] = [await mint('k', 'key'), await mint('k', 'key')];

  const compromised = (await admin.post('/v1/keys', {})).body;
  await admin.delete(`/v1/keys/${compromised.id}?reason=compromised`);
  const compromisedToo = await partnerKey();
  await admin.delete(`/v1/keys/${compromisedToo.id}?reason=compromised`);
  const deletedToken = await token();
  await admin.delete(`/v1/access-tokens/${deletedToken.id}`);
  const deletedKey = await partnerKey();
  await admin.delete(`/v1/keys/${deletedKey.id}?reason=unused`);
  const suspendedKey = await partnerKey();
  await admin.post(`/v1/keys/${suspendedKey.id}/suspend`);
  const suspendedPartner = await partner();
  await admin.post(`/v1/partners/${suspendedPartner.id}/suspend`);
  const deletedPartner = await partner();
  await admin.delete(`/v1/partners/${deletedPartner.id}`);
  const expiring = await partnerKey({ expiresAt: soon() });
  const bound = await partnerKey({ allowedIps: ['198.51.100.7'] });
  const limited = await partnerKey({ rateLimit: { requests: 1, windowSeconds: 60 } });
  const readKey = await partnerKey();
  const moved = await partnerKey();
  const foreign = await partnerKey();
  const exchanged = await partnerKey();
  const [widerPartner, richerPartner] = [await partner(), await partner()];
  const [roleToken, scopeToken, otherToken, lateToken, renamedToken] = [
    await token(),
    await token(),
    await token(),
    await token({ expiresAt: soon() }),
    await token(),
  ];
  const [event] = (await admin.get('/v1/history?limit=1')).body.data as Json[];

  const updateKey = (key: Json, change: string, outcome: Outcome = 'doctor'): Attempt => ({
    what: `key: ${change}`,
    sql: `update api_keys set ${change} where id = '${key.id}'`,
    outcome,
    names: key.id,
    ...(outcome === 'doctor' ? { key: key.key } : {}),
  });
  const updateToken = (target: Json, change: string): Attempt => ({
    what: `token: ${change}`,
    sql: `update access_tokens set ${change} where id = '${target.id}'`,
    outcome: 'doctor',
    names: target.id,
    token: target.token,
  });
  const audited = (what: string, sql: string, names: string): Attempt => ({ what, sql, outcome: 'audit', names });
  const refused = (sql: string): Attempt => ({ what: sql, sql, outcome: 'refused' });
  const ownPermissions = `'{read,write}'`;
  const append = (shape: Record<string, unknown>, text: (json: string) => string = (json) => json): Attempt => {
    const json = text(JSON.stringify({ ...event, sequence: 1, ...shape }));
    return {
      what: `append ${json.slice(0, 80)}`,
      sql: `select history_append($1, $2)`,
      values: [organizationId, json],
      outcome: 'refused',
    };
  };

  const attempts: Attempt[] = [
    {
      what: 'an admin token under an unknown keyring entry',
      sql: insertToken(`organization_id, 'admin', '{read,write}'`),
      values: [adminUnderUnknownEntry.id, 'gone', adminUnderUnknownEntry.hash],
      outcome: 'doctor',
      names: adminUnderUnknownEntry.id,
      token: adminUnderUnknownEntry.plaintext,
    },
    {
      what: 'an admin token with the tag and MAC of another',
      sql: insertToken(`organization_id, 'admin', '{read,write}'`),
      values: [adminUnderKnownEntry.id, 'k1', adminUnderKnownEntry.hash],
      outcome: 'doctor',
      names: adminUnderKnownEntry.id,
      token: adminUnderKnownEntry.plaintext,
    },
    {
      what: 'an operator token',
      sql: insertToken(`null, 'operator', '{read,write}'`),
      values: [globalOperator.id, 'gone', globalOperator.hash],
      outcome: 'doctor',
      names: globalOperator.id,
      token: globalOperator.plaintext,
    },
    {
      what: 'a key under an unknown keyring entry',
      sql: insertKey,
      values: [keyUnderUnknownEntry.id, organizationId, 1, bytes, 'gone', keyUnderUnknownEntry.hash],
      outcome: 'doctor',
      names: keyUnderUnknownEntry.id,
      key: keyUnderUnknownEntry.plaintext,
    },
    {
      what: 'a key under an existing keyring entry',
      sql: insertKey,
      values: [keyUnderKnownEntry.id, organizationId, 2, bytes, 'k1', keyUnderKnownEntry.hash],
      outcome: 'doctor',
      names: keyUnderKnownEntry.id,
      key: keyUnderKnownEntry.plaintext,
    },
    {
      what: 'the next keyring entry',
      sql: "insert into keyring_entries (id, check_value, mac, mac_keyring_id) values ('k2', $1, $1, 'k1')",
      values: [bytes],
      outcome: 'doctor',
      names: 'keyring entry k2',
    },
    audited(
      'an organization',
      `insert into organizations select (jsonb_populate_record(one, '{"id":"${newOrganization}"}')).*
       from organizations as one where id = '${organizationId}'`,
      newOrganization,
    ),
    refused("insert into installation (token_prefix, root_keyring_id) values ('zz', 'k2')"),
    refused("update keyring_entries set check_value = decode(repeat('00', 32), 'hex')"),
    updateToken(roleToken, "role = 'operator', organization_id = null"),
    updateToken(scopeToken, `scopes = ${ownPermissions}`),
    updateToken(otherToken, `organization_id = '${other.id}'`),
    updateToken(lateToken, 'expires_at = null'),
    updateToken(renamedToken, "email = 'somebody.else@p.example'"),
    updateKey(readKey, "permission = 'write'"),
    updateKey(expiring, 'expires_at = null'),
    updateKey(bound, "allowed_ips = '{}'"),
    updateKey(limited, 'rate_limit_requests = 1000000'),
    updateKey(moved, `partner_id = '${widerPartner.id}', slot = 2`),
    updateKey(foreign, `organization_id = '${other.id}', partner_id = null, permission = 'read_write'`),
    updateKey(exchanged, `tag = (select tag from api_keys where id = '${readKey.id}')`),
    audited(
      "a partner's permissions",
      `update partners set permissions = ${ownPermissions} where id = '${widerPartner.id}'`,
      widerPartner.id,
    ),
    audited(
      "a partner's limit",
      `update partners set rate_limit_requests = 1000000, rate_limit_window_seconds = 1 where id = '${richerPartner.id}'`,
      richerPartner.id,
    ),
    audited(
      "an organization's limit and reveals",
      `update organizations set rate_limit_requests = 1000000, key_reveal = 'never' where id = '${other.id}'`,
      other.id,
    ),
    updateKey(
      compromised,
      "deleted_at = null, delete_reason = null, argon2id_hash = 'x', slot = 1, partner_id = null",
      'refused',
    ),
    updateKey(compromisedToo, "deleted_at = null, delete_reason = null, argon2id_hash = 'x'"),
    updateToken(deletedToken, 'deleted_at = null'),
    updateKey(deletedKey, 'deleted_at = null, delete_reason = null', 'audit'),
    updateKey(suspendedKey, 'suspended_at = null', 'audit'),
    audited(
      'a suspended partner',
      `update partners set suspended_at = null where id = '${suspendedPartner.id}'`,
      suspendedPartner.id,
    ),
    audited(
      'a deleted partner',
      `update partners set deleted_at = null where id = '${deletedPartner.id}'`,
      deletedPartner.id,
    ),
    refused(`delete from api_keys where id = '${compromised.id}'`),
    append({ at: new Date(Date.now() + 59_000).toISOString() }),
    append({ at: new Date(Date.now() - 86_400_000).toISOString() }),
    append({ details: 'x' }),
    append({ action: 'nothing known' }),
    append({ actor: null }),
    append({ details: { text: 'x'.repeat(20_000_000) } }),
    append({}, (json) => json.replace(':', ': ')),
    append({ organizationId: other.id }),
    refused("update history set canonical = '{}'"),
    refused('delete from history'),
    refused('truncate history'),
    refused(`insert into history select * from history limit 1`),
    refused('update history_heads set sequence = sequence + 1'),
    refused('alter table history disable trigger history_append_only'),
    refused("set session_replication_role = 'replica'"),
    refused('drop table history'),
    refused('create table public.mine (a int)'),
    refused("copy history to program 'true'"),
    {
      what: 'a thousand notifications that clear every cache',
      sql: "select pg_notify('latchkey_changes', '*') from generate_series(1, 1000)",
      outcome: 'ineffective',
    },
    {
      what: 'a thousand invalid notifications',
      sql: "select pg_notify('latchkey_changes', repeat('x', 7000) || n) from generate_series(1, 1000) as n",
      outcome: 'ineffective',
    },
  ];
  t.ok(attempts.length >= 40, `${attempts.length} statements`);

  await eventually(
    async () => Date.now() > Date.parse(expiring.expiresAt) && Date.now() > Date.parse(lateToken.expiresAt),
  );
  for (const { what, sql, values = [], outcome } of attempts) {
    const error = await dbQuery(urls.app, sql, values).then(
      () => undefined,
      (rejected: Error) => rejected,
    );
    if (outcome === 'refused') t.type(error, Error, `refused: ${what}`);
    else t.equal(error?.message, undefined, `ran: ${what}`);
  }

  for (const { what, key, token: plaintext } of attempts) {
    if (key !== undefined) {
      const input = { key, permission: 'read', ip: '203.0.113.9' };
      const { body } = await service.verifier.post('/v1/verify', input, { 'cache-control': 'no-cache' });
      t.equal(body.valid, false, `does not work: ${what}`);
    }
    if (plaintext !== undefined)
      t.equal((await service.as(plaintext).get('/v1/rows')).status, 401, `does not work: ${what}`);
  }
  const env = { DATABASE_URL: urls.app, LATCHKEY_KEYRING: keyringText('k1', 'k2') };
  const run = async (...args: string[]) => {
    const process = runEntry(t, 'cli/latchkey.ts', args, { env });
    const { code } = await process.exited;
    return { code, output: process.output() };
  };
  const found = { doctor: await run('doctor'), audit: await run('audit', 'verify') };
  for (const [command, { code }] of Object.entries(found)) t.equal(code, 1, `${command} reports an error`);
  for (const { what, outcome, names = '' } of attempts) {
    if (outcome !== 'doctor' && outcome !== 'audit') continue;
    const { output } = found[outcome];
    t.ok(output.includes(names), `named: ${what}`);
  }
  t.match(
    (await admin.post('/v1/keys', { partnerId: richerPartner.id, permission: 'read' })).status,
    201,
    'the service continues',
  );
  const { body: verification } = await admin.get('/v1/history/verify');
  t.match(verification, { valid: false, firstBadSequence: null }, 'the chain itself is valid');
});
