import type { Test } from 'tap';
import { newId } from '../src/domain/ids.ts';
import { jobs } from '../src/jobs/list.ts';
import { type Json, startService, type TestService } from './support/app.ts';
import { dbQuery } from './support/database.ts';
import { dbDue, startReplica } from './support/jobs.ts';
import { keyringOf } from './support/keyrings.ts';
import { readMetrics } from './support/metrics.ts';
import { eventually, runEntry } from './support/process.ts';
import { type Difference, differencesIn, purge } from './support/state-differences.ts';
import { t } from './support/tap.ts';

// A row that differs from its events is reported with the member. A MAC cannot find a row reset to an earlier copy.

const dayMs = 86_400_000;

interface Records {
  service: TestService;
  organizationId: string;
  /** A second organization without resources. */
  other: string;
  ids: Record<
    'plain' | 'rotated' | 'suspended' | 'deleted' | 'restored' | 'purged' | 'partner' | 'second' | 'admin' | 'verifier',
    string
  >;
  inOther: Record<string, string>;
}

/** Records on which every possible change was made. */
async function startWithRecords(t: Test): Promise<Records> {
  const service = await startService(t, { keyring: keyringOf('evidence') });
  const { admin, operator, organizationId, urls } = service;
  const partners: Json[] = [];
  for (const name of ['First', 'Second']) {
    const email = `${name}@p.example`;
    const rateLimit = { requests: 10, windowSeconds: 60 };
    const input = { email, name, externalId: name, permissions: ['read', 'write'], rateLimit, metadata: { tier: 1 } };
    partners.push((await admin.post('/v1/partners', input)).body);
  }
  const [first, second] = partners;
  const purged = first.keys[0].id;
  await admin.delete(`/v1/keys/${purged}?reason=compromised`);
  await admin.patch(`/v1/partners/${first.id}`, {
    permissions: ['write'],
    name: 'Renamed',
    externalId: 'customer-1',
    metadata: { tier: 'gold' },
    rateLimit: null,
  });
  await admin.post(`/v1/partners/${second.id}/suspend`);
  await admin.post(`/v1/partners/${second.id}/resume`);
  await admin.delete(`/v1/partners/${second.id}`);
  await admin.post(`/v1/partners/${second.id}/restore`);
  const expiresAt = new Date(Date.now() + 90 * dayMs).toISOString();
  const input = { name: 'Plain', expiresAt, allowedIps: ['203.0.113.0/24'], metadata: { team: 'a' } };
  const { body: plain } = await admin.post('/v1/keys', { ...input, rateLimit: { requests: 5, windowSeconds: 1 } });
  await admin.patch(`/v1/keys/${plain.id}`, { metadata: { team: 'b', n: 1.5 }, allowedIps: [], name: null });
  await admin.post(`/v1/keys/${plain.id}/suspend`);
  await admin.post(`/v1/keys/${plain.id}/resume`);
  const rotated = first.keys[1].id;
  await admin.post(`/v1/keys/${rotated}/rotate`, { expireOldAfterSeconds: 3600 });
  const deleted = second.keys[0].id;
  await admin.delete(`/v1/keys/${deleted}?reason=unused`);
  const { body: suspended } = await admin.post('/v1/keys', {});
  await admin.post(`/v1/keys/${suspended.id}/suspend`, { reason: 'A leak' });
  const restored = second.keys[1].id;
  await admin.delete(`/v1/keys/${restored}`);
  await admin.post(`/v1/keys/${restored}/restore`);
  await admin.put('/v1/rate-limit', { requests: 77, windowSeconds: 7 });
  await admin.patch('/v1/organization', { name: 'Renamed' });
  const person = { role: 'admin', scopes: ['read', 'write'], name: 'Bob', email: 'bob@example.com', expiresAt };
  const { body: adminToken } = await admin.post('/v1/access-tokens', person);
  const { body: verifier } = await admin.post('/v1/access-tokens', { role: 'verifier', scopes: ['read'], name: 'B' });
  await admin.delete(`/v1/access-tokens/${verifier.id}`);
  const { body: other } = await operator.post('/v1/organizations', { name: 'Other' });
  // Only the key that was compromised long ago is due.
  await dbQuery(urls.superuser, "update api_keys set deleted_at = deleted_at - interval '40 days' where id = $1", [
    purged,
  ]);
  await purge(service);
  await dbQuery(urls.superuser, "update api_keys set deleted_at = deleted_at + interval '40 days' where id = $1", [
    purged,
  ]);
  return {
    service,
    organizationId,
    other: other.id,
    inOther: { 'latchkey-organization': other.id },
    ids: {
      plain: plain.id,
      rotated,
      suspended: suspended.id,
      deleted,
      restored,
      purged,
      partner: first.id,
      second: second.id,
      admin: adminToken.id,
      verifier: verifier.id,
    },
  };
}

const named = (differences: readonly Difference[]) => differences.map(({ id, member }) => `${id} ${member}`).sort();

/** Columns that are not compared, because they decide nothing or something else covers them. */
const notCompared: Record<string, string[]> = {
  // The slot is a place in the row, bucket and folded name follow from other members, the rest checks or dates the token.
  api_keys: [
    ...['id', 'slot', 'tag', 'tag_keyring_id', 'argon2id_hash', 'sealed', 'sealed_keyring_id'],
    ...['digest_sealed', 'digest_keyring_id', 'last_four', 'created_at'],
    ...['mac', 'mac_keyring_id', 'limit_bucket_id', 'folded_name'],
    // Only the job for idle keys reads it, beside usage, which is not compared either.
    'resumed_at',
  ],
  partners: ['id', 'created_at', 'organization_id'],
  // The MAC covers the creator chain.
  access_tokens: [
    ...['id', 'tag', 'tag_keyring_id', 'argon2id_hash', 'last_four', 'created_at', 'mac', 'mac_keyring_id'],
    ...['last_used_at', 'creator_chain'],
  ],
  organizations: ['id', 'created_at'],
};

type Edit = [table: string, column: string, set: string, record: keyof Records['ids'] | 'organization', member: string];

const anotherCreator = "created_by = jsonb_set(created_by, '{id}', to_jsonb('somebody'::text))";

const edits: Edit[] = [
  ['api_keys', 'partner_id', 'partner_id = $partner', 'deleted', 'partnerId'],
  ['api_keys', 'permission', "permission = 'read'", 'rotated', 'permission'],
  [
    'api_keys',
    'origin',
    "origin = 'imported', argon2id_hash = null, digest_sealed = 'x', digest_keyring_id = 'x'",
    'plain',
    'origin',
  ],
  ['api_keys', 'name', "name = 'Another'", 'plain', 'name'],
  ['api_keys', 'expires_at', 'expires_at = null', 'plain', 'expiresAt'],
  ['api_keys', 'expires_at', "expires_at = 'infinity'", 'rotated', 'expiresAt'],
  ['api_keys', 'allowed_ips', "allowed_ips = '{203.0.113.7}'", 'plain', 'allowedIps'],
  ['api_keys', 'scopes', "scopes = '{invoices:write}'", 'plain', 'scopes'],
  ['api_keys', 'metadata', `metadata = '{"team":"c"}'`, 'plain', 'metadata'],
  ['api_keys', 'replaces_key_id', 'replaces_key_id = id, limit_bucket_id = id', 'plain', 'replacesKeyId'],
  ['api_keys', 'rate_limit_requests', 'rate_limit_requests = 1000000', 'plain', 'rateLimit'],
  ['api_keys', 'rate_limit_window_seconds', 'rate_limit_window_seconds = 2', 'plain', 'rateLimit'],
  ['api_keys', 'created_by', `created_by = '{"type":"system","id":"x","name":"x","email":null}'`, 'plain', 'createdBy'],
  ['api_keys', 'suspended_at', 'suspended_at = now()', 'plain', 'suspendedAt'],
  ['api_keys', 'suspended_reason', "suspended_reason = 'Another'", 'suspended', 'suspendedReason'],
  ['api_keys', 'deleted_at', "deleted_at = deleted_at + interval '1 day'", 'deleted', 'deletedAt'],
  ['api_keys', 'delete_reason', "delete_reason = 'other'", 'deleted', 'deleteReason'],
  ['api_keys', 'purged_at', "purged_at = purged_at + interval '1 day'", 'purged', 'purgedAt'],
  ['partners', 'email', "email = 'another@p.example'", 'partner', 'email'],
  ['partners', 'name', 'name = null', 'partner', 'name'],
  ['partners', 'external_id', "external_id = 'another'", 'partner', 'externalId'],
  ['partners', 'metadata', `metadata = '{"tier":"silver"}'`, 'partner', 'metadata'],
  ['partners', 'permissions', "permissions = '{read,write}'", 'partner', 'permissions'],
  ['partners', 'rate_limit_requests', 'rate_limit_requests = 1000', 'second', 'rateLimit'],
  ['partners', 'rate_limit_window_seconds', 'rate_limit_window_seconds = 1', 'second', 'rateLimit'],
  ['partners', 'created_by', anotherCreator, 'partner', 'createdBy'],
  ['partners', 'suspended_at', 'suspended_at = now()', 'second', 'suspendedAt'],
  ['partners', 'deleted_at', 'deleted_at = now()', 'partner', 'deletedAt'],
  ['access_tokens', 'role', "role = 'verifier'", 'admin', 'role'],
  ['access_tokens', 'scopes', "scopes = '{read,write}'", 'verifier', 'scopes'],
  ['access_tokens', 'name', "name = 'Another'", 'admin', 'name'],
  ['access_tokens', 'email', "email = 'eve@example.com'", 'admin', 'email'],
  ['access_tokens', 'expires_at', 'expires_at = null', 'admin', 'expiresAt'],
  ['access_tokens', 'deleted_at', 'deleted_at = null', 'verifier', 'deletedAt'],
  ['access_tokens', 'created_by', anotherCreator, 'admin', 'createdBy'],
  ['organizations', 'name', "name = 'Another'", 'organization', 'name'],
  ['organizations', 'key_reveal', "key_reveal = 'never'", 'organization', 'keyReveal'],
  ['organizations', 'leak_response', "leak_response = 'revoke'", 'organization', 'leakResponse'],
  ...[
    ['self_service', 'true', 'selfService'],
    ['max_key_lifetime_seconds', '8', 'maxKeyLifetimeSeconds'],
    ['default_key_lifetime_seconds', '8', 'defaultKeyLifetimeSeconds'],
    ['idle_suspend_after_days', '8', 'idleSuspendAfterDays'],
  ].map(([column = '', to, member = '']): Edit => {
    return ['organizations', column, `${column} = ${to}`, 'organization', member];
  }),
  ['organizations', 'rate_limit_requests', 'rate_limit_requests = 1000000', 'organization', 'rateLimit'],
  ['organizations', 'rate_limit_window_seconds', 'rate_limit_window_seconds = 60', 'organization', 'rateLimit'],
  ['organizations', 'created_by', anotherCreator, 'organization', 'createdBy'],
];

t.test('after every possible change rows equal their events, and each edit is reported', async (t) => {
  const records = await startWithRecords(t);
  const { service, organizationId, other, inOther, ids } = records;
  const { urls, operator } = service;
  t.same(await differencesIn(service), []);
  t.same(await differencesIn({ admin: operator }), [], "the installation's own tokens");
  t.same(await differencesIn({ admin: operator }, inOther), [], 'an empty organization');

  /** Changes a row, runs a check, and resets the row. */
  const whileChanged = async <Result>(
    table: string,
    id: string,
    statement: string,
    check: () => Promise<Result>,
  ): Promise<Result> => {
    const [before] = await dbQuery(urls.superuser, `select to_jsonb(r) as row from ${table} r where id = $1`, [id]);
    const done = await dbQuery(urls.superuser, statement.replaceAll('$partner', `'${ids.partner}'`), [id]);
    if (done.length !== 1) throw new Error(`${statement} met ${done.length} rows`);
    try {
      return await check();
    } finally {
      await dbPutBack(urls.superuser, table, before?.['row']);
    }
  };

  await t.test('an edit of any deciding column is reported', async (t) => {
    for (const [table, , set, record, member] of edits) {
      const id = record === 'organization' ? organizationId : ids[record];
      const sql = `update ${table} set ${set} where id = $1 returning id`;
      const differences = await whileChanged(table, id, sql, () => differencesIn(service));
      t.same(named(differences), [`${id} ${member}`], `${table}: ${set}`);
      t.notSame(differences[0]?.history, differences[0]?.table);
    }
    t.same(await differencesIn(service), [], 'no difference after the reset');
  });

  await t.test('every column is compared or listed as excluded', async (t) => {
    for (const [table, columns] of Object.entries(notCompared)) {
      const rows = await dbQuery(
        urls.superuser,
        "select column_name from information_schema.columns where table_schema = 'public' and table_name = $1",
        [table],
      );
      const edited = edits.filter(([of]) => of === table).map(([, column]) => column);
      const moved = ['organization_id'];
      const known = [...columns, ...edited, ...moved];
      t.same(
        rows.map(({ column_name: name }) => String(name)).filter((name) => !known.includes(name)),
        [],
        table,
      );
    }
  });

  await t.test('a revived or resumed key is reported with both values', async (t) => {
    const revive = 'update api_keys set deleted_at = null, delete_reason = null where id = $1 returning id';
    const [one, two] = await whileChanged('api_keys', ids.deleted, revive, () => differencesIn(service));
    t.match(
      [one, two],
      [
        { id: ids.deleted, member: 'deletedAt', history: /^\d{4}-/, table: null },
        { id: ids.deleted, member: 'deleteReason', history: 'unused', table: null },
      ],
    );
    await service.admin.post(`/v1/keys/${ids.restored}/suspend`);
    const resume = 'update api_keys set suspended_at = null where id = $1 returning id';
    const differences = await whileChanged('api_keys', ids.restored, resume, () => differencesIn(service));
    t.same(named(differences), [`${ids.restored} suspendedAt`]);
  });

  await t.test('a row that was reset to an earlier copy is reported', async (t) => {
    const copy = 'select to_jsonb(r) as row from api_keys r where id = $1';
    const [earlier] = await dbQuery(urls.superuser, copy, [ids.plain]);
    await service.admin.delete(`/v1/keys/${ids.plain}`);
    const [now] = await dbQuery(urls.superuser, copy, [ids.plain]);
    await dbPutBack(urls.superuser, 'api_keys', earlier?.['row']);
    t.same(named(await differencesIn(service)), [`${ids.plain} deleteReason`, `${ids.plain} deletedAt`]);
    await dbPutBack(urls.superuser, 'api_keys', now?.['row']);
    t.same(await differencesIn(service), []);
  });

  await t.test('records without events, and missing records, are reported', async (t) => {
    const copies: Array<[table: string, from: string, id: string]> = [
      ['api_keys', ids.purged, newId('key')],
      ['partners', ids.partner, newId('partner')],
      ['access_tokens', ids.admin, newId('token')],
    ];
    for (const [table, from, id] of copies) {
      await dbQuery(
        urls.superuser,
        `insert into ${table} select (jsonb_populate_record(r,
           jsonb_build_object('id', $2::text, 'email', 'copy@p.example', 'external_id', 'copy'))).*
         from ${table} r where id = $1`,
        [from, id],
      );
      t.same(await differencesIn(service), [{ id, member: 'id', history: null, table: id }], `inserted into ${table}`);
      await dbQuery(urls.superuser, `delete from ${table} where id = $1`, [id]);
    }
    for (const [table, id] of [
      ['api_keys', ids.plain],
      ['access_tokens', ids.admin],
    ] as const) {
      const deletion = `delete from ${table} where id = $1 returning id`;
      const differences = await whileChanged(table, id, deletion, () => differencesIn(service));
      t.same(differences, [{ id, member: 'id', history: id, table: null }], `deleted from ${table}`);
    }
  });

  await t.test('a record moved to another organization is reported as missing and as unknown', async (t) => {
    for (const [table, id] of [
      ['api_keys', ids.plain],
      ['access_tokens', ids.admin],
    ] as const) {
      const move = `update ${table} set organization_id = '${other}' where id = $1 returning id`;
      const [from, to] = await whileChanged(table, id, move, async () => [
        await differencesIn(service),
        await differencesIn({ admin: operator }, inOther),
      ]);
      t.same(from, [{ id, member: 'id', history: id, table: null }], table);
      t.same(to, [{ id, member: 'id', history: null, table: id }], table);
    }
    const [verifier] = await dbQuery(
      urls.app,
      "select id from access_tokens where role = 'verifier' and deleted_at is null",
    );
    const id = String(verifier?.['id']);
    const widen = 'update access_tokens set organization_id = null where id = $1 returning id';
    const differences = await whileChanged('access_tokens', id, widen, () => differencesIn({ admin: operator }));
    t.same(named(differences), [`${id} id`], 'a verifier that was made global');
  });

  await t.test('an organization without an event is reported', async (t) => {
    const id = newId('org');
    await dbQuery(
      urls.superuser,
      `insert into organizations select (jsonb_populate_record(r, jsonb_build_object('id', $2::text))).* from organizations r where id = $1`,
      [other, id],
    );
    const differences = await differencesIn({ admin: operator }, { 'latchkey-organization': id });
    t.same(differences, [{ id, member: 'id', history: null, table: id }]);
    await dbQuery(urls.superuser, 'delete from organizations where id = $1', [id]);
  });
});

/** Resets the row to the given copy, whatever it is now. */
async function dbPutBack(url: string, table: string, row: unknown): Promise<void> {
  const columns = Object.keys(row as object);
  await dbQuery(
    url,
    `insert into ${table} select (jsonb_populate_record(null::${table}, $1)).*
     on conflict (id) do update set ${columns.map((column) => `${column} = excluded.${column}`).join(', ')}`,
    [JSON.stringify(row)],
  );
}

t.test('at most 100 differences are listed at once', async (t) => {
  const service = await startService(t);
  for (let number = 0; number < 60; number++) {
    const { body } = await service.admin.post('/v1/partners', { email: `p${number}@p.example`, permissions: ['read'] });
    if (body.id === undefined) throw new Error(JSON.stringify(body));
  }
  await dbQuery(service.urls.superuser, "update partners set suspended_at = now(), name = 'x'");
  const differences = await differencesIn(service);
  t.equal(differences.length, 100);
  t.equal(new Set(named(differences)).size, 100);
});

t.test('`latchkey audit verify` and the daily job report the same differences, and metrics count them', async (t) => {
  const { service, organizationId, ids } = await startWithRecords(t);
  const { urls, app } = service;
  const audit = async () => {
    const env = { DATABASE_URL: urls.app };
    const process = runEntry(t, 'cli/latchkey.ts', ['audit', 'verify'], { env });
    const { code } = await process.exited;
    return { code, output: process.output() };
  };
  const replica = startReplica(
    t,
    urls.app,
    jobs.filter(({ name }) => name === 'audit_states'),
  );
  /** @returns the count that the job reports */
  const runJob = async () => {
    const last = async () =>
      (
        await dbQuery(
          urls.app,
          "select last_succeeded_at::text as at, last_count from job_runs where name = 'audit_states'",
        )
      )[0];
    const before = await eventually(last);
    await dbDue(urls, 'audit_states');
    const run = await eventually(async () => {
      const found = await last();
      return found?.['at'] !== before['at'] && found;
    });
    return Number(run['last_count']);
  };
  const counted = async (kind: string) =>
    readMetrics((await app.inject('/metrics')).body).value('latchkey_state_differences', { kind });
  t.equal(await counted('key'), undefined, 'no value before the first run');
  t.equal(await runJob(), 0);
  t.equal(await counted('key'), 0);
  t.notMatch(replica.logLines.join(''), '"level":50');
  t.equal((await audit()).code, 0);
  await dbQuery(urls.superuser, 'update api_keys set expires_at = null where id = $1', [ids.plain]);
  await dbQuery(urls.superuser, "update partners set email = 'eve@p.example' where id = $1", [ids.partner]);
  await dbQuery(urls.superuser, 'update access_tokens set deleted_at = null where id = $1', [ids.verifier]);
  const { code, output } = await audit();
  t.equal(code, 1);
  t.match(
    output,
    new RegExp(`^wrong {3}${organizationId}: ${ids.plain}: expiresAt is null in the table, but "20`, 'm'),
  );
  t.match(
    output,
    new RegExp(`^wrong {3}${organizationId}: ${ids.partner}: email is "eve@p.example" in the table`, 'm'),
  );
  t.match(output, new RegExp(`^wrong {3}${organizationId}: ${ids.verifier}: deletedAt is null in the table`, 'm'));
  t.match(output, new RegExp(`^ok {6}${organizationId}: `, 'm'), 'the chain itself is valid');

  t.equal(await runJob(), 3);
  for (const [kind, count] of Object.entries({ key: 1, partner: 1, access_token: 1, organization: 0 })) {
    t.equal(await counted(kind), count, kind);
  }
  const { value } = readMetrics((await app.inject('/metrics')).body);
  t.ok(Math.abs((value('latchkey_state_compared_timestamp_seconds') ?? 0) - Date.now() / 1000) < 600);
  const logged = replica.logLines.map((line) => JSON.parse(line)).filter(({ level }) => level === 50);
  t.match(
    logged.sort((one, other) => (one.kind < other.kind ? -1 : 1)),
    [
      { chain: organizationId, kind: 'access_token', id: ids.verifier, member: 'deletedAt' },
      { chain: organizationId, kind: 'key', id: ids.plain, member: 'expiresAt' },
      { chain: organizationId, kind: 'partner', id: ids.partner, member: 'email' },
    ],
  );
  t.notMatch(replica.logLines.join(''), 'eve@', 'the log has ids and members, but no values');
});

t.test('a concurrent change is not reported as a difference', async (t) => {
  const service = await startService(t);
  const { admin } = service;
  const { body: partner } = await admin.post('/v1/partners', { email: 'p@p.example', permissions: ['read', 'write'] });
  let isOver = false;
  const changing = (async () => {
    for (let call = 0; !isOver; call++) {
      await admin.patch(`/v1/keys/${partner.keys[0].id}`, { name: `${call}` });
      await admin.patch(`/v1/partners/${partner.id}`, { name: `${call}` });
      await admin.post(`/v1/keys/${partner.keys[1].id}/${call % 2 === 0 ? 'suspend' : 'resume'}`);
      const { body } = await admin.post('/v1/keys', {});
      await admin.delete(`/v1/keys/${body.id}`);
      await admin.put('/v1/rate-limit', { requests: 1 + (call % 7), windowSeconds: 60 });
    }
  })();
  const differences: Difference[] = [];
  for (let round = 0; round < 40; round++) differences.push(...(await differencesIn(service)));
  isOver = true;
  await changing;
  t.same(differences, []);
});
