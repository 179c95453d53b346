import type { Test } from 'tap';
import { type Json, startService, type TestService } from './support/app.ts';
import { dbQuery } from './support/database.ts';
import { foreignToken, sha256Of } from './support/imports.ts';
import { keyringOf } from './support/keyrings.ts';
import { t } from './support/tap.ts';

const statuses = (replies: Array<{ status: number }>) => replies.map(({ status }) => status).sort();

async function addPartner({ admin }: TestService): Promise<Json> {
  const email = `p${Math.random()}@p.example`;
  const { body: partner } = await admin.post('/v1/partners', { email, permissions: ['read'] });
  await admin.delete(`/v1/keys/${partner.keys[0].id}`);
  return partner;
}

async function requireSound(t: Test, { admin, urls }: TestService): Promise<void> {
  t.match((await admin.get('/v1/history/verify')).body, { valid: true, stateDifferences: [] });
  const [counts] = await dbQuery(
    urls.superuser,
    `select (select count(*) from api_keys where origin = 'imported')::int as keys,
       (select count(*) from history where action = 'key.imported')::int as events`,
  );
  t.equal(counts?.['keys'], counts?.['events'], 'no import without its event');
}

t.test('of concurrent imports of one token one succeeds, over replicas with different primary entries', async (t) => {
  const first = await startService(t, { keyring: keyringOf('k1', 'k2') });
  const second = await startService(t, { keyring: keyringOf('k2', 'k1'), urls: first.urls });
  const admins = [first.admin, second.as(first.admin.token)];
  const partners = await Promise.all(Array.from({ length: 8 }, () => addPartner(first)));
  for (let round = 0; round < 15; round++) {
    const token = foreignToken();
    const replies = await Promise.all(
      partners.map(({ id }, index) =>
        admins[index % 2]?.post('/v1/keys/import', {
          entries: [{ partnerId: id, ...(index % 3 === 0 ? { plaintext: token } : { sha256: sha256Of(token) }) }],
        }),
      ),
    );
    const done = replies.filter((reply) => reply !== undefined);
    t.same(statuses(done), [201, ...Array.from({ length: 7 }, () => 409)]);
    const [winner] = done.filter(({ status }) => status === 201);
    const id = winner?.body.data[0].id;
    for (const { status, body } of done) if (status === 409) t.match(body, { code: 'key_exists', keyId: id });
    await first.admin.delete(`/v1/keys/${id}?reason=compromised`);
  }
  await requireSound(t, first);
});

t.test('imports and creations together never put three keys into a row', async (t) => {
  const service = await startService(t);
  const { admin, urls } = service;
  for (let round = 0; round < 10; round++) {
    const partner = await addPartner(service);
    const replies = await Promise.all(
      Array.from({ length: 12 }, (_, index) =>
        index % 2 === 0
          ? admin.post('/v1/keys', { partnerId: partner.id })
          : admin.post('/v1/keys/import', { entries: [{ partnerId: partner.id, plaintext: foreignToken() }] }),
      ),
    );
    t.same(statuses(replies), [201, 201, ...Array.from({ length: 10 }, () => 409)]);
    t.ok(replies.every(({ status, body }) => status === 201 || body.code === 'row_full'));
  }
  const [most] = await dbQuery(
    urls.superuser,
    `select max(keys)::int as keys from (select count(*) as keys from api_keys where deleted_at is null
       group by partner_id, permission) as rows`,
  );
  t.same(most, { keys: 2 });
  await requireSound(t, service);
});

t.test(
  'imports into many rows in any order, creations and deletions of partners do not block each other',
  async (t) => {
    const service = await startService(t);
    const { admin, urls, logLines } = service;
    const partners = await Promise.all(Array.from({ length: 40 }, () => addPartner(service)));
    const importInto = (some: Json[]) =>
      admin.post('/v1/keys/import', {
        entries: [
          ...some.map(({ id }) => ({ partnerId: id, plaintext: foreignToken() })),
          { plaintext: foreignToken() },
        ],
      });
    const importAndClear = async (some: Json[]) => {
      const reply = await importInto(some);
      for (const { id, partnerId } of reply.body.data ?? [])
        if (partnerId === null) await admin.delete(`/v1/keys/${id}`);
      return reply;
    };
    const replies = await Promise.all([
      importAndClear(partners),
      importAndClear(partners.toReversed()),
      ...partners.slice(0, 10).map(({ id }) => admin.delete(`/v1/partners/${id}`)),
      ...partners.slice(10).map(({ id }) => admin.post('/v1/keys', { partnerId: id })),
      admin.post('/v1/keys', {}),
    ]);
    t.ok(replies.every(({ status }) => status < 500));
    t.notMatch(logLines.join(''), /deadlock/);
    const [orphans] = await dbQuery(
      urls.superuser,
      `select count(*)::int as keys from api_keys k join partners p on p.id = k.partner_id
     where k.deleted_at is null and p.deleted_at is not null`,
    );
    t.same(orphans, { keys: 0 });
    await requireSound(t, service);
  },
);

t.test('a deleted partner has no live key, even if one is imported at the same time', async (t) => {
  const service = await startService(t);
  const { admin, urls } = service;
  const outcomes = new Set<number>();
  for (let pair = 0; pair < 100; pair++) {
    const partner = await addPartner(service);
    const [imported, deleted] = await Promise.all([
      admin.post('/v1/keys/import', { entries: [{ partnerId: partner.id, plaintext: foreignToken() }] }),
      admin.delete(`/v1/partners/${partner.id}`),
    ]);
    t.equal(deleted.status, 200);
    outcomes.add(imported.status);
    if (imported.status !== 201) t.match(imported.body, { code: 'already_deleted' });
  }
  t.ok([...outcomes].every((status) => [201, 409].includes(status)));
  const [orphans] = await dbQuery(
    urls.superuser,
    `select count(*)::int as keys from api_keys k join partners p on p.id = k.partner_id
     where k.deleted_at is null and p.deleted_at is not null`,
  );
  t.same(orphans, { keys: 0 });
  await requireSound(t, service);
});
