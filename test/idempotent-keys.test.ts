import { setTimeout as delay } from 'node:timers/promises';
import type { Test } from 'tap';
import { pruneIdempotency } from '../src/http/idempotency-store.ts';
import { type Json, type Reply, startService, type TestService } from './support/app.ts';
import { createTestClock } from './support/clock.ts';
import { dbDump, dbQuery } from './support/database.ts';
import { t } from './support/tap.ts';

// A reply with a plaintext is stored sealed for 15 minutes. After that a retry is 409 `reply_gone` with the created ids.

const withKey = (key: string) => ({ 'idempotency-key': key });
const minutes = (count: number) => count * 60_000;

const isReplay = ({ headers }: Reply) => headers['idempotent-replayed'] === 'true';

/** @param created the ids that the problem must name */
function isGone(t: Test, reply: Reply, created: string[]): void {
  t.match([reply.status, reply.body.code, reply.body.created], [409, 'reply_gone', created]);
  t.ok(isReplay(reply));
  t.match(reply.body.detail, created.join(', '));
}

/** How many replies are stored, with and without a plaintext. */
async function keptReplies({ urls }: TestService): Promise<Record<string, unknown> | undefined> {
  const [row] = await dbQuery(
    urls.superuser,
    `select (count(sealed) filter (where has_plaintext))::int as plaintexts,
       (count(sealed) filter (where not has_plaintext))::int as others, count(*)::int as requests from idempotency_keys`,
  );
  return row;
}

/** Requests whose replies have a plaintext, each with the ids of the created resources. */
const plaintextRequests: Record<
  string,
  (service: TestService) => { retry: () => Promise<Reply>; idsOf: (body: Json) => string[] }
> = {
  'a key': ({ admin }) => ({
    retry: () => admin.post('/v1/keys', { name: 'Lost' }, withKey('k')),
    idsOf: ({ id }) => [id],
  }),
  'a key made by an operator': ({ operator, organizationId }) => ({
    retry: () => operator.post('/v1/keys', {}, { ...withKey('k'), 'latchkey-organization': organizationId }),
    idsOf: ({ id }) => [id],
  }),
  'a partner with its keys': ({ admin }) => ({
    retry: () => admin.post('/v1/partners', { email: 'p@p.example', permissions: ['write', 'read'] }, withKey('k')),
    idsOf: ({ id, keys }) => [id, ...keys.map((key: Json) => key.id)],
  }),
  'an access token': ({ admin }) => ({
    retry: () =>
      admin.post('/v1/access-tokens', { role: 'verifier', name: 'Checkout', scopes: ['read'] }, withKey('k')),
    idsOf: ({ id }) => [id],
  }),
  "a webhook's secret": ({ admin }) => ({
    retry: () => admin.post('/v1/webhooks', { url: 'http://127.0.0.1:9/one', events: ['key.created'] }, withKey('k')),
    idsOf: ({ id }) => [id],
  }),
};

type PlaintextRequest = (typeof plaintextRequests)[string];

/** Sends each request for the first time. */
async function sendAll(t: Test, service: TestService) {
  const sentRequests: Array<ReturnType<PlaintextRequest> & { what: string; first: Reply }> = [];
  for (const [what, make] of Object.entries(plaintextRequests)) {
    const maker = make(service);
    const first = await maker.retry();
    t.same([first.status, isReplay(first)], [201, false], what);
    sentRequests.push({ ...maker, what, first });
  }
  return sentRequests;
}

t.test('the reply is replayed for 15 minutes; later retries name the created resources', async (t) => {
  const service = await startService(t, { limits: { callerLimit: 1_000, addressLimit: 1_000, revealLimit: 1 } });
  const { admin, later } = service;
  const sentRequests = await sendAll(t, service);
  const before = (await admin.get('/v1/history?limit=200')).body;
  later(minutes(15) - 20_000);
  for (const { what, first, retry } of sentRequests) {
    for (const again of [await retry(), await retry()]) {
      t.ok(isReplay(again), what);
      t.same([again.status, again.headers['location']], [201, first.headers['location']]);
      t.equal(JSON.stringify(again.body), JSON.stringify(first.body));
    }
  }
  later(20_000);
  t.match(await keptReplies(service), { plaintexts: sentRequests.length });
  for (const { first, retry, idsOf } of sentRequests) isGone(t, await retry(), idsOf(first.body));
  t.match(
    await keptReplies(service),
    { plaintexts: 0, requests: sentRequests.length },
    'the retry has erased the plaintext',
  );
  later(minutes(23 * 60 + 44));
  for (const { first, retry, idsOf } of sentRequests) isGone(t, await retry(), idsOf(first.body));
  t.same((await admin.get('/v1/history?limit=200')).body, before, 'nothing was repeated, and replays leave no event');
});

t.test('no plaintext is stored if keyReveal is never', async (t) => {
  const service = await startService(t);
  const { admin } = service;
  await admin.patch('/v1/organization', { keyReveal: 'never' });
  const sentRequests = await sendAll(t, service);
  for (const { first, retry, idsOf } of sentRequests) isGone(t, await retry(), idsOf(first.body));
  t.match(await keptReplies(service), { plaintexts: 0, requests: sentRequests.length });
  await admin.patch('/v1/organization', { keyReveal: 'allowed' });
  for (const { first, retry, idsOf } of sentRequests) isGone(t, await retry(), idsOf(first.body));
});

t.test('stored plaintexts are erased at once when keyReveal becomes never', async (t) => {
  const service = await startService(t);
  const sentRequests = await sendAll(t, service);
  await service.admin.patch('/v1/organization', { keyReveal: 'never' });
  t.match(await keptReplies(service), { plaintexts: 0, requests: sentRequests.length });
  for (const { first, retry, idsOf } of sentRequests) isGone(t, await retry(), idsOf(first.body));
});

t.test('replies without a plaintext are stored, whatever keyReveal is', async (t) => {
  const service = await startService(t);
  const { admin, operator, later } = service;
  const { body: key } = await admin.post('/v1/keys', {});
  const suspend = () => admin.post(`/v1/keys/${key.id}/suspend`, undefined, withKey('k'));
  const first = await suspend();
  await operator.post('/v1/access-tokens', { role: 'operator', name: 'Olga', scopes: ['read'] }, withKey('o'));
  await admin.patch('/v1/organization', { keyReveal: 'never' });
  t.same(await keptReplies(service), { plaintexts: 1, others: 1, requests: 2 }, "an operator's is in no organization");
  later(minutes(24 * 60 - 1));
  const again = await suspend();
  t.ok(isReplay(again));
  t.same([again.status, again.body], [200, first.body]);
});

t.test('plaintexts of another organization are not erased', async (t) => {
  const service = await startService(t);
  const { admin, operator } = service;
  await admin.post('/v1/keys', {}, withKey('k'));
  const { body: other } = await operator.post('/v1/organizations', { name: 'Other' });
  await operator.patch(`/v1/organizations/${other.id}`, { keyReveal: 'never' });
  t.match(await keptReplies(service), { plaintexts: 1 });
});

t.test('when keyReveal becomes never, concurrent requests store no plaintext', async (t) => {
  const service = await startService(t);
  const { admin } = service;
  for (let round = 0; round < 10; round++) {
    const input = { role: 'verifier', name: 'Checkout', scopes: ['read'] };
    const sentRequests = Array.from({ length: 8 }, (_, index) =>
      delay(index).then(() => admin.post('/v1/access-tokens', input, withKey(`${round}-${index}`))),
    );
    await delay(Math.random() * 8);
    t.equal((await admin.patch('/v1/organization', { keyReveal: 'never' })).status, 200);
    for (const { status } of await Promise.all(sentRequests)) t.equal(status, 201);
    t.match(await keptReplies(service), { plaintexts: 0 });
    await admin.patch('/v1/organization', { keyReveal: 'allowed' });
  }
});

t.test('the job erases plaintexts after 15 minutes, and keeps the other replies', async (t) => {
  const service = await startService(t);
  const { admin, client } = service;
  const { body: key } = await admin.post('/v1/keys', {}, withKey('k'));
  await admin.post(`/v1/keys/${key.id}/suspend`, undefined, withKey('s'));
  const prune = (shiftMs: number) => pruneIdempotency({ db: client.db, clock: createTestClock(shiftMs) });
  await prune(minutes(14));
  t.same(await keptReplies(service), { plaintexts: 1, others: 1, requests: 2 });
  await prune(minutes(15));
  t.same(await keptReplies(service), { plaintexts: 0, others: 1, requests: 2 });
  isGone(t, await admin.post('/v1/keys', {}, withKey('k')), [key.id]);
  t.equal(await prune(minutes(24 * 60)), 2);
});

t.test('a replayed key that was deleted does not work', async (t) => {
  const { admin, verifier } = await startService(t);
  const { body: key } = await admin.post('/v1/keys', {}, withKey('k'));
  await admin.delete(`/v1/keys/${key.id}?reason=compromised`);
  t.same((await admin.post('/v1/keys', {}, withKey('k'))).body, key);
  t.equal((await verifier.post('/v1/verify', { key: key.key, permission: 'read' })).body.valid, false);
});

t.test(
  'a stored reply that was moved, changed or forged is not replayed, and the request is not done again',
  async (t) => {
    const service = await startService(t);
    const { admin, urls, logLines } = service;
    const change = (members: string) => `update idempotency_keys set ${members} where $1 = any(created)`;
    const cases: Record<string, string> = {
      'the reply of another request': change(`(sealed, sealed_keyring_id) =
      (select sealed, sealed_keyring_id from idempotency_keys where $2 = any(created))`),
      'a flipped bit': change('sealed = set_byte(sealed, 20, get_byte(sealed, 20) # 1)'),
      'a shortened reply': change('sealed = substring(sealed from 1 for 20)'),
      'a removed keyring entry': change(`sealed_keyring_id = 'gone'`),
      'a request under an unknown keyring entry': change(`request_mac_keyring_id = 'gone'`),
      'a later time': change(`created_at = created_at + interval '1 minute'`),
      'a reply that would be kept longer': change('has_plaintext = false'),
      'another organization': change(`organization_id = 'org_other'`),
    };
    for (const [what, sql] of Object.entries(cases)) {
      await t.test(what, async (t) => {
        const post = (name: string) => admin.post('/v1/partners', input(name), withKey(`${what} ${name}`));
        const input = (name: string) => ({
          email: `${name}@${what.replaceAll(' ', '-')}.example`,
          permissions: ['read'],
        });
        const { body: own } = await post('mine');
        const { body: other } = await post('theirs');
        await dbQuery(urls.superuser, sql, sql.includes('$2') ? [own.id, other.id] : [own.id]);
        logLines.length = 0;
        isGone(t, await post('mine'), [own.id, own.keys[0].id]);
        t.match(logLines.join(''), 'A stored reply to a request with an Idempotency-Key cannot be unsealed');
        t.same((await post('theirs')).body, other);
      });
    }
    const requestCount = 2 * Object.keys(cases).length;
    t.equal((await admin.get('/v1/history?limit=200&action=partner.created')).body.data.length, requestCount);
  },
);

t.test("a stored reply moved to another caller's equal request is not replayed", async (t) => {
  const { admin, as, urls } = await startService(t);
  const input = { role: 'admin', name: 'Bob', email: 'bob@example.com', scopes: ['read', 'write'] };
  const otherAdmin = as((await admin.post('/v1/access-tokens', input)).body.token);
  const { body: ownKey } = await admin.post('/v1/keys', {}, withKey('k'));
  const { body: othersKey } = await otherAdmin.post('/v1/keys', {}, withKey('k'));
  const [row] = await dbQuery(
    urls.superuser,
    'delete from idempotency_keys where $1 = any(created) returning address',
    [othersKey.id],
  );
  await dbQuery(urls.superuser, 'update idempotency_keys set address = $1', [row?.['address']]);
  const again = await otherAdmin.post('/v1/keys', {}, withKey('k'));
  isGone(t, again, [ownKey.id]);
});

t.test('a stored reply edited to match another body is not replayed', async (t) => {
  const { admin, urls } = await startService(t);
  const { body: one } = await admin.post('/v1/keys', { name: 'One' }, withKey('one'));
  const { body: two } = await admin.post('/v1/keys', { name: 'Two' }, withKey('two'));
  await dbQuery(
    urls.superuser,
    `update idempotency_keys set request_mac = (select request_mac from idempotency_keys where $2 = any(created))
     where $1 = any(created)`,
    [one.id, two.id],
  );
  isGone(t, await admin.post('/v1/keys', { name: 'Two' }, withKey('one')), [one.id]);
});

t.test(
  'stored data has neither a plaintext nor the Idempotency-Key, even if a caller uses a key as Idempotency-Key',
  async (t) => {
    const { admin, urls } = await startService(t);
    const { body: key } = await admin.post('/v1/keys', {});
    const input = { email: 'p@p.example', permissions: ['read', 'write'], name: 'Kept' };
    await admin.post('/v1/partners', input, withKey(key.key));
    const again = await admin.post('/v1/partners', input, withKey(key.key));
    const dump = await dbDump(urls.superuser);
    for (const { key: plaintext } of [key, ...again.body.keys]) {
      t.notOk(dump.includes(plaintext));
      t.notOk(dump.includes(Buffer.from(plaintext).toString('hex')));
    }
  },
);
