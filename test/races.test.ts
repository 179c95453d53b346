import type { Test } from 'tap';
import { type Json, startService, type TestService } from './support/app.ts';
import { dbQuery } from './support/database.ts';
import { t } from './support/tap.ts';

const statuses = (replies: Array<{ status: number }>) => replies.map((reply) => reply.status).sort();

async function requireSoundHistory(t: Test, { admin, urls, organizationId }: TestService): Promise<void> {
  t.match((await admin.get('/v1/history/verify')).body, { valid: true });
  const [unmatched] = await dbQuery(
    urls.superuser,
    `select count(*)::int as keys from api_keys k where organization_id = $1 and (
       not exists (select from history h where h.key_id = k.id and h.action = 'key.created')
       or (deleted_at is not null) <> exists (select from history h where h.key_id = k.id and h.action = 'key.deleted'))`,
    [organizationId],
  );
  t.same(unmatched, { keys: 0 }, 'no change without its event, no event without its change');
}

t.test('of 24 concurrent creations in an empty row two succeed; the others get row_full', async (t) => {
  const service = await startService(t);
  const { admin } = service;
  const rounds = 10;
  for (let round = 0; round < rounds; round++) {
    const { body: partner } = await admin.post('/v1/partners', { email: `p${round}@p.example`, permissions: ['read'] });
    await admin.delete(`/v1/keys/${partner.keys[0].id}`);
    const replies = await Promise.all(
      Array.from({ length: 24 }, () => admin.post('/v1/keys', { partnerId: partner.id })),
    );
    t.same(statuses(replies), [201, 201, ...Array.from({ length: 22 }, () => 409)]);
    t.ok(replies.every(({ status, body }) => status === 201 || body.code === 'row_full'));
  }
  const replies = await Promise.all(Array.from({ length: 24 }, () => admin.post('/v1/keys', {})));
  t.same(statuses(replies).slice(0, 3), [201, 201, 409], 'also in the default row');
  await requireSoundHistory(t, service);
});

t.test('two concurrent creations in an empty row both succeed, without a conflict about a place', async (t) => {
  const service = await startService(t);
  const { admin } = service;
  const { body: partner } = await admin.post('/v1/partners', { email: 'p@p.example', permissions: ['read'] });
  await admin.delete(`/v1/keys/${partner.keys[0].id}`);
  for (const row of [{}, { partnerId: partner.id }]) {
    for (let round = 0; round < 15; round++) {
      const replies = await Promise.all([admin.post('/v1/keys', row), admin.post('/v1/keys', row)]);
      t.same(statuses(replies), [201, 201]);
      await Promise.all(replies.map(({ body }) => admin.delete(`/v1/keys/${body.id}`)));
    }
  }
  await requireSoundHistory(t, service);
});

t.test('a deleted partner has no live key, even if a key is created at the same time', async (t) => {
  const service = await startService(t);
  const { admin, urls } = service;
  const outcomes = new Set<string>();
  const pairs = 200;
  for (let pair = 0; pair < pairs; pair++) {
    const { body: partner } = await admin.post('/v1/partners', { email: `p${pair}@p.example`, permissions: ['write'] });
    const [created, deleted] = await Promise.all([
      admin.post('/v1/keys', { partnerId: partner.id }),
      admin.delete(`/v1/partners/${partner.id}`),
    ]);
    t.equal(deleted.status, 200);
    outcomes.add(created.status === 201 ? 'created' : created.body.code);
  }
  t.ok(
    [...outcomes].every((outcome) => ['created', 'already_deleted'].includes(outcome)),
    [...outcomes].join(', '),
  );
  const live = await dbQuery(
    urls.superuser,
    `select k.id from api_keys k join partners p on p.id = k.partner_id
     where p.deleted_at is not null and k.deleted_at is null`,
  );
  t.same(live, []);
  await requireSoundHistory(t, service);
});

t.test('of two concurrent partners with the same address one is created', async (t) => {
  const { admin } = await startService(t);
  for (let round = 0; round < 10; round++) {
    const replies = await Promise.all(
      ['a', 'A', 'a', 'A'].map((letter) =>
        admin.post('/v1/partners', { email: `${letter}${round}@p.example`, permissions: ['read'] }),
      ),
    );
    t.same(statuses(replies), [201, 409, 409, 409]);
    const winner = replies.find(({ status }) => status === 201)?.body.id;
    for (const { status, body } of replies) {
      if (status === 409) t.match(body, { code: 'partner_exists', partnerId: winner });
    }
  }
});

t.test('of two concurrent partners with the same externalId one is created', async (t) => {
  const service = await startService(t);
  const { admin } = service;
  for (let round = 0; round < 10; round++) {
    const externalId = `customer-${round}`;
    const replies = await Promise.all(
      ['a', 'b', 'c', 'd'].map((letter) =>
        admin.post('/v1/partners', { email: `${letter}${round}@p.example`, permissions: ['read'], externalId }),
      ),
    );
    t.same(statuses(replies), [201, 409, 409, 409]);
    const winner = replies.find(({ status }) => status === 201)?.body.id;
    for (const { status, body } of replies) {
      if (status === 409) t.match(body, { code: 'external_id_exists', partnerId: winner });
    }
  }
  const { body: history } = await admin.get('/v1/history?action=partner.created&limit=200');
  t.equal(history.data.length, 10);
  await requireSoundHistory(t, service);
});

t.test('of many concurrent deletions of a key one succeeds and is recorded', async (t) => {
  const service = await startService(t);
  const { admin } = service;
  for (let round = 0; round < 10; round++) {
    const { body: key } = await admin.post('/v1/keys', {});
    const replies = await Promise.all(Array.from({ length: 8 }, () => admin.delete(`/v1/keys/${key.id}`)));
    t.same(statuses(replies), [200, ...Array.from({ length: 7 }, () => 409)]);
    const { body: history } = await admin.get(`/v1/keys/${key.id}/history`);
    t.same(
      history.data.map((event: Json) => event.action),
      ['key.deleted', 'key.created'],
    );
  }
});

t.test('after the reply to a delete no reveal and no verification succeeds', async (t) => {
  const { admin, verifier } = await startService(t);
  for (let round = 0; round < 10; round++) {
    const { body: key } = await admin.post('/v1/keys', {});
    let deletedAt = Number.POSITIVE_INFINITY;
    const successesAfterDelete: string[] = [];
    const revealAndVerify = async () => {
      for (let call = 0; call < 6; call++) {
        const startedAt = performance.now();
        const [reveal, verdict] = await Promise.all([
          admin.post(`/v1/keys/${key.id}/reveal`),
          verifier.post('/v1/verify', { key: key.key, permission: 'read' }),
        ]);
        if (startedAt < deletedAt) continue;
        if (reveal.status === 200) successesAfterDelete.push('reveal');
        if (verdict.body.valid) successesAfterDelete.push('verify');
      }
    };
    const remove = async () => {
      await admin.delete(`/v1/keys/${key.id}`);
      deletedAt = performance.now();
    };
    await Promise.all([revealAndVerify(), revealAndVerify(), remove(), revealAndVerify()]);
    t.same(successesAfterDelete, []);
  }
});

t.test('no live key lacks its permission, even if the permission is removed while the key is created', async (t) => {
  const service = await startService(t);
  const { admin, urls } = service;
  for (let round = 0; round < 40; round++) {
    const { body: partner } = await admin.post('/v1/partners', {
      email: `p${round}@p.example`,
      permissions: ['read', 'write'],
    });
    const [created] = await Promise.all([
      admin.post('/v1/keys', { partnerId: partner.id, permission: 'write' }),
      admin.patch(`/v1/partners/${partner.id}`, { permissions: ['read'] }),
    ]);
    t.ok([201, 400].includes(created.status), String(created.status));
  }
  const stray = await dbQuery(
    urls.superuser,
    `select k.id from api_keys k join partners p on p.id = k.partner_id
     where k.deleted_at is null and not (k.permission = any (p.permissions))`,
  );
  t.same(stray, []);
  await requireSoundHistory(t, service);
});

t.test('no sealed value remains if keyReveal becomes never while keys are created', async (t) => {
  const { admin, urls } = await startService(t);
  for (let round = 0; round < 10; round++) {
    await admin.patch('/v1/organization', { keyReveal: 'allowed' });
    const { body: partner } = await admin.post('/v1/partners', { email: `p${round}@p.example`, permissions: ['read'] });
    await Promise.all([
      admin.post('/v1/keys', { partnerId: partner.id }),
      admin.patch('/v1/organization', { keyReveal: 'never' }),
    ]);
    const [row] = await dbQuery(
      urls.superuser,
      'select count(*)::int as sealed from api_keys where sealed is not null',
    );
    t.same(row, { sealed: 0 });
  }
});

t.test('concurrent changes in one organization leave no gap in the chain, and none gets a 500', async (t) => {
  const service = await startService(t);
  const { admin } = service;
  const replies = await Promise.all(
    Array.from({ length: 60 }, (_, index) =>
      index % 2 === 0
        ? admin.post('/v1/partners', { email: `p${index}@p.example`, permissions: ['read', 'write'] })
        : admin.put('/v1/rate-limit', { requests: index + 1, windowSeconds: 60 }),
    ),
  );
  t.ok(replies.every(({ status }) => status < 300));
  await requireSoundHistory(t, service);
});
