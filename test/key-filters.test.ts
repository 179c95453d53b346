import fc from 'fast-check';
import { newId } from '../src/domain/ids.ts';
import { type Json, startService, type TestService } from './support/app.ts';
import { dbQuery } from './support/database.ts';
import { t } from './support/tap.ts';

const dayMs = 86_400_000;

interface RandomKey {
  id: string;
  partnerId: string | null;
  permission: 'read' | 'write' | 'read_write';
  name: string | null;
  lastFour: string;
  createdAt: Date;
  expiresAt: Date | null;
  lastUsedAt: Date | null;
  suspendedAt: Date | null;
  deletedAt: Date | null;
  deleteReason: 'other' | 'compromised' | null;
  scopes: string[];
  metadata: Record<string, unknown>;
}

// Names that differ in case, in accents, and in what LIKE and regular expressions would read as wildcards.
const names = [
  null,
  'Billing',
  'BILLING export',
  'billing%',
  'billing_',
  'Bil',
  'Éclair',
  'éCLAIR 2',
  'Ωmega',
  'ΟΔΟΣ',
  'οδοσα',
  '(x',
];
const prefixes = ['b', 'BILL', 'billing%', 'billing_', 'BiL', 'é', 'ÉCL', 'ω', 'οδοσ', '(', '%', 'none', '\\'];
const scopes = ['invoices:read', 'invoices:write', 'a', '%'];
const texts = ['billing', '5', 'true', '1e+21', '', 'null'];
const values = ['billing', 5, true, 1e21, '', null, ['billing'], { a: 'billing' }, '5', '{"a":"billing"}'];
const members = ['team', 'a.b', 'Ωx', '%'];

const start = Date.UTC(2026, 0, 1);
const day = fc.integer({ min: 0, max: 20 }).map((days) => new Date(start + days * dayMs));
const rarely = <Value>(value: fc.Arbitrary<Value>) => fc.option(value, { freq: 1 });

const randomKey = fc.record({
  owner: fc.integer({ min: 0, max: 5 }),
  access: fc.constantFrom('read' as const, 'write' as const),
  name: fc.constantFrom(...names),
  lastFour: fc.constantFrom('aaaa', 'AAAA', 'zZ09'),
  createdAt: day,
  expiresAt: rarely(day),
  usedAfterDays: rarely(fc.integer({ min: 0, max: 9 })),
  suspendedAt: rarely(day),
  deletion: rarely(
    fc.record({ deletedAt: day, deleteReason: fc.constantFrom('other' as const, 'compromised' as const) }),
  ),
  scopes: fc.uniqueArray(fc.constantFrom(...scopes)),
  metadata: fc.dictionary(fc.constantFrom(...members), fc.constantFrom(...values)),
});

const randomFilter = fc.record(
  {
    partnerId: fc.integer({ min: 0, max: 6 }),
    permission: fc.constantFrom('read', 'write', 'read_write'),
    status: fc.constantFrom('active', 'suspended', 'expired', 'deleted'),
    includeDeleted: fc.boolean(),
    name: fc.constantFrom(...prefixes),
    lastFour: fc.constantFrom('aaaa', 'zZ09', 'none'),
    expiresBefore: day,
    createdBefore: day,
    lastUsedBefore: day,
    scope: fc.constantFrom(...scopes),
    metadata: fc.dictionary(fc.constantFrom(...members), fc.constantFrom(...texts), { minKeys: 1 }),
  },
  { requiredKeys: [] },
);

/** Unicode's simple case folding, by another implementation than the service's. */
const beginsWith = (name: string | null, prefix: string) =>
  name !== null && new RegExp(`^${prefix.replaceAll(/[\\^$.*+?()[\]{}|]/g, '\\$&')}`, 'iu').test(name);

const textOf = (value: unknown) => (['string', 'number', 'boolean'].includes(typeof value) ? String(value) : undefined);

const statusOf = (key: RandomKey, now: Date) => {
  if (key.deletedAt !== null) return 'deleted';
  if (key.suspendedAt !== null) return 'suspended';
  return key.expiresAt !== null && key.expiresAt <= now ? 'expired' : 'active';
};

interface Filter {
  [name: string]: unknown;
}

function matches(key: RandomKey, filter: Filter, now: Date): boolean {
  const status = statusOf(key, now);
  const isRestorable =
    key.deletedAt !== null && now.getTime() - key.deletedAt.getTime() < dayMs && key.deleteReason !== 'compromised';
  const isShown =
    filter['status'] === undefined
      ? status !== 'deleted' || (filter['includeDeleted'] === true && isRestorable)
      : status === filter['status'];
  const before = (time: Date | null, name: string) =>
    filter[name] === undefined || (time !== null && time < (filter[name] as Date));
  return (
    isShown &&
    (filter['partnerId'] === undefined || (key.partnerId ?? 'default') === filter['partnerId']) &&
    (filter['permission'] === undefined || key.permission === filter['permission']) &&
    (filter['name'] === undefined || beginsWith(key.name, String(filter['name']))) &&
    (filter['lastFour'] === undefined || key.lastFour === filter['lastFour']) &&
    before(key.expiresAt, 'expiresBefore') &&
    before(key.createdAt, 'createdBefore') &&
    before(key.lastUsedAt ?? key.createdAt, 'lastUsedBefore') &&
    (filter['scope'] === undefined || key.scopes.includes(String(filter['scope']))) &&
    Object.entries((filter['metadata'] ?? {}) as Record<string, string>).every(
      ([member, text]) => Object.hasOwn(key.metadata, member) && textOf(key.metadata[member]) === text,
    )
  );
}

function parametersOf({ metadata, ...filter }: Filter): Record<string, string> {
  const all = Object.entries({
    ...filter,
    ...Object.fromEntries(Object.entries(metadata ?? {}).map(([member, text]) => [`metadata.${member}`, text])),
  });
  return Object.fromEntries(
    all.map(([name, value]) => [name, value instanceof Date ? value.toISOString() : String(value)]),
  );
}

async function dbInsertKeys(
  { urls, admin }: TestService,
  keys: readonly RandomKey[],
  foldCase: (text: string) => string,
) {
  const { body: one } = await admin.post('/v1/keys', {});
  for (const key of keys) {
    const changes = {
      id: key.id,
      partner_id: key.partnerId,
      permission: key.permission,
      name: key.name,
      folded_name: key.name === null ? null : foldCase(key.name),
      last_four: key.lastFour,
      created_at: key.createdAt,
      expires_at: key.expiresAt,
      suspended_at: key.suspendedAt,
      deleted_at: key.deletedAt,
      delete_reason: key.deleteReason,
      scopes: key.scopes,
    };
    const wiped =
      key.deleteReason === 'compromised' ? { argon2id_hash: null, sealed: null, sealed_keyring_id: null } : {};
    await dbQuery(
      urls.superuser,
      `insert into api_keys select (jsonb_populate_record(one, $2)).* from api_keys as one where id = $1`,
      [one.id, JSON.stringify({ ...changes, ...wiped })],
    );
    await dbQuery(urls.superuser, 'update api_keys set metadata = $2::json where id = $1', [
      key.id,
      JSON.stringify(key.metadata),
    ]);
    await dbQuery(urls.superuser, 'update key_last_uses set last_used_at = $2 where key_id = $1', [
      key.id,
      key.lastUsedAt,
    ]);
  }
  await dbQuery(urls.superuser, 'delete from key_last_uses where key_id = $1', [one.id]);
  await dbQuery(urls.superuser, 'delete from api_keys where id = $1', [one.id]);
}

t.test('each combination of filters lists the same keys as a filter over all keys, on every page', async (t) => {
  const { foldCase } = await import('../src/keys/policy.ts');
  const service = await startService(t, { limits: { callerLimit: 1e9, addressLimit: 1e9, revealLimit: 1e9 } });
  const { admin, urls } = service;
  const partnerIds: string[] = [];
  // The rule of two places is not about lists.
  await dbQuery(urls.superuser, 'drop index api_keys_live_slot');
  for (let index = 0; index < 5; index++) {
    const { body } = await admin.post('/v1/partners', { email: `p${index}@p.example`, permissions: ['read', 'write'] });
    partnerIds.push(body.id);
    for (const key of body.keys) await dbQuery(urls.superuser, 'delete from key_last_uses where key_id = $1', [key.id]);
    for (const key of body.keys) await dbQuery(urls.superuser, 'delete from api_keys where id = $1', [key.id]);
  }
  service.clock.move(start + 10 * dayMs + 3_600_000 - Date.now());
  const keys = fc.sample(randomKey, { numRuns: 150, seed: 7 }).map(
    ({ owner, access, usedAfterDays, deletion, ...key }): RandomKey => ({
      ...key,
      id: newId('key'),
      partnerId: partnerIds[owner] ?? null,
      permission: owner < partnerIds.length ? access : 'read_write',
      lastUsedAt: usedAfterDays === null ? null : new Date(key.createdAt.getTime() + usedAfterDays * dayMs),
      deletedAt: deletion?.deletedAt ?? null,
      deleteReason: deletion?.deleteReason ?? null,
    }),
  );
  await dbInsertKeys(service, keys, foldCase);
  const newestFirst = [...keys].sort((one, other) => (one.id < other.id ? 1 : -1));
  let found = 0;
  const list = async (filter: Filter): Promise<void> => {
    const now = new Date(service.clock.nowMs());
    const expected = newestFirst.filter((key) => matches(key, filter, now)).map(({ id }) => id);
    const listed: string[] = [];
    let cursor: string | null = '';
    while (cursor !== null) {
      const query = new URLSearchParams({ ...parametersOf(filter), limit: '40', ...(cursor === '' ? {} : { cursor }) });
      const { status, body }: Json = await admin.get(`/v1/keys?${query}`);
      if (status !== 200) throw new Error(JSON.stringify(body));
      listed.push(...body.data.map(({ id }: Json) => id));
      cursor = body.nextCursor;
    }
    found += listed.length;
    t.same(listed, expected, JSON.stringify(filter));
  };
  const filters = fc.sample(randomFilter, { numRuns: 40, seed: 7 });
  for (const { partnerId, ...filter } of filters) {
    const owner = partnerId === undefined ? {} : { partnerId: partnerIds[partnerId] ?? 'default' };
    await list({ ...filter, ...owner });
    // Alone, because most combinations match nothing.
    for (const [name, value] of Object.entries({ ...filter, ...owner })) await list({ [name]: value });
  }
  t.ok(found > 500, 'the filters find keys');
});

t.test('names are compared without regard to case, independently of the locale', async (t) => {
  const { admin } = await startService(t);
  const cases: Array<[name: string, prefixes: string[]]> = [
    ['Straße 1', ['strasse', 'STRAẞE', 'straße']],
    ['ÅNGSTRÖM', ['ångs', 'A\u030ang']],
    ['İstanbul', ['i\u0307stan', 'İST']],
    ['ИВАН', ['иван']],
  ];
  for (const [name, prefixes] of cases) {
    const { body: key } = await admin.post('/v1/keys', { name });
    for (const prefix of prefixes) {
      const { body } = await admin.get(`/v1/keys?${new URLSearchParams({ name: prefix })}`);
      t.same(
        body.data.map(({ id }: Json) => id),
        [key.id],
        `${prefix} finds ${name}`,
      );
    }
    await admin.patch(`/v1/keys/${key.id}`, { name: 'Renamed' });
    t.equal((await admin.get(`/v1/keys?${new URLSearchParams({ name })}`)).body.data.length, 0);
    t.equal((await admin.get('/v1/keys?name=RENAMED')).body.data.length, 1);
    await admin.delete(`/v1/keys/${key.id}`);
  }
});

t.test('a filter that cannot be is rejected with its path', async (t) => {
  const { admin } = await startService(t);
  const eleven = Array.from({ length: 11 }, (_, index) => `metadata.m${index}=x`).join('&');
  const cases: Array<[query: string, path: string]> = [
    ['name=', 'query.name'],
    [`name=${'x'.repeat(201)}`, 'query.name'],
    ['lastFour=abc', 'query.lastFour'],
    ['lastFour=abcde', 'query.lastFour'],
    ['expiresBefore=tomorrow', 'query.expiresBefore'],
    ['createdBefore=2026-02-30T00:00:00Z', 'query.createdBefore'],
    ['lastUsedBefore=1', 'query.lastUsedBefore'],
    ['scope=a%20b', 'query.scope'],
    ['metadata=x', 'query.metadata'],
    ['metadata.=x', 'query.metadata.'],
    ['metadata.a=x&metadata.a=y', 'query.metadata.a'],
    [`metadata.a=${'x'.repeat(1_001)}`, 'query.metadata.a'],
    [eleven, 'query.metadata.m10'],
    ['metadata.a=%00', 'query.metadata.a'],
    ['team=x', 'query.team'],
    ['name=a&name=b', 'query.name'],
  ];
  for (const [query, path] of cases) {
    const { status, body } = await admin.get(`/v1/keys?${query}`);
    t.same([status, body.code, body.errors?.[0]?.path], [400, 'validation_failed', path], query.slice(0, 80));
  }
});

t.test('a use is found by lastUsedBefore as soon as it is written', async (t) => {
  const service = await startService(t);
  const { admin, verifier, verification } = service;
  const { body: used } = await admin.post('/v1/keys', {});
  const { body: unused } = await admin.post('/v1/keys', {});
  service.later(10 * dayMs);
  const before = new Date(service.clock.nowMs() - dayMs).toISOString();
  const idle = async () => (await admin.get(`/v1/keys?lastUsedBefore=${before}`)).body.data.map(({ id }: Json) => id);
  t.same(await idle(), [unused.id, used.id]);
  t.equal((await verifier.post('/v1/verify', { key: used.key, permission: 'read' })).body.code, 'valid');
  await verification.usage.flush();
  t.same(await idle(), [unused.id]);
});
