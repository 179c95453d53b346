import t, { type Test } from 'tap';
import { type Json, type Reply, startService, type TestService } from './support/app.ts';
import { dbDump, dbQuery } from './support/database.ts';

// What a replayed reply shows of plaintexts: what its caller has been shown already, for a while, as a recorded look. Where
// one can no longer be shown, the answer is a problem that names what was made.

const withKey = (key: string) => ({ 'idempotency-key': key });
const minutes = (count: number) => count * 60_000;
const many = 1_000_000;

const isReplay = ({ headers }: Reply) => headers['idempotent-replayed'] === 'true';

async function looks({ admin }: TestService): Promise<Json[]> {
  return (await admin.get('/v1/history?limit=200&action=key.revealed')).body.data;
}

/** @param created the ids that the problem must name */
function isGone(t: Test, reply: Reply, created: string[]): void {
  t.match([reply.status, reply.body.code, reply.body.created], [409, 'reply_gone', created]);
  t.ok(isReplay(reply));
  t.match(reply.body.detail, created.join(', '));
}

t.test('for 15 minutes a replay has the key, and each time is a look that is recorded', async (t) => {
  const service = await startService(t);
  const { admin, verifier, later } = service;
  const retry = () => admin.post('/v1/keys', { name: 'Lost' }, { ...withKey('k'), 'user-agent': 'retry/1.0' });
  const first = await retry();
  t.same(await looks(service), [], 'the first reply is no look');
  later(minutes(15) - 20_000);
  const second = await retry();
  t.ok(isReplay(second));
  t.equal(JSON.stringify(second.body), JSON.stringify(first.body));
  t.equal((await verifier.post('/v1/verify', { key: second.body.key, permission: 'read' })).body.valid, true);
  await retry();
  t.match(
    await looks(service),
    [1, 2].map(() => ({
      keyId: first.body.id,
      partnerId: null,
      actor: { type: 'admin', email: 'ada@example.com' },
      request: { userAgent: 'retry/1.0' },
      details: { reason: 'replay', recipient: null },
    })),
  );
  later(20_000);
  isGone(t, await retry(), [first.body.id]);
  t.equal((await looks(service)).length, 2);
  t.equal((await admin.post(`/v1/keys/${first.body.id}/reveal`)).body.key, first.body.key, 'reveal goes on as ever');
});

t.test('both keys of a new partner, each a look of its own', async (t) => {
  const service = await startService(t);
  const { admin } = service;
  const wish = { email: 'p@p.example', permissions: ['write', 'read'] };
  const first = await admin.post('/v1/partners', wish, withKey('k'));
  const second = await admin.post('/v1/partners', wish, withKey('k'));
  t.equal(JSON.stringify(second.body), JSON.stringify(first.body));
  const [read, write] = first.body.keys;
  t.same(
    (await looks(service)).map(({ keyId, partnerId }) => [keyId, partnerId]),
    [
      [write.id, first.body.id],
      [read.id, first.body.id],
    ],
  );
  await admin.delete(`/v1/keys/${read.id}`);
  isGone(t, await admin.post('/v1/partners', wish, withKey('k')), [first.body.id, read.id, write.id]);
  t.equal((await looks(service)).length, 2, 'the other key is not opened either');
});

t.test('a key that reveal would not show is in no replay either, and no look is counted for it', async (t) => {
  const cases: Record<string, (service: TestService, key: Json) => Promise<unknown>> = {
    'a deleted one': ({ admin }, key) => admin.delete(`/v1/keys/${key.id}`),
    'a compromised one': ({ admin }, key) => admin.delete(`/v1/keys/${key.id}?reason=compromised`),
    'one of an organization that wants none to be seen': ({ admin }) =>
      admin.patch('/v1/organization', { keyReveal: 'never' }),
    'one whose sealed value was not kept': ({ urls }, key) =>
      dbQuery(urls.superuser, 'update api_keys set sealed = null, sealed_keyring_id = null where id = $1', [key.id]),
  };
  for (const [what, act] of Object.entries(cases)) {
    await t.test(what, async (t) => {
      const service = await startService(t, {
        limits: { callerLimit: many, addressLimit: many, revealLimit: 1 },
      });
      const { admin } = service;
      const first = await admin.post('/v1/keys', {}, withKey('k'));
      await act(service, first.body);
      for (let turn = 0; turn < 3; turn++) {
        isGone(t, await admin.post('/v1/keys', {}, withKey('k')), [first.body.id]);
      }
      t.same(await looks(service), []);
    });
  }
});

t.test(
  'a key that is deleted while it is replayed: every retry is answered, and nobody looks after the end',
  async (t) => {
    const service = await startService(t);
    const { admin } = service;
    const shown = new Set<boolean>();
    for (let round = 0; round < 15; round++) {
      const retry = () => admin.post('/v1/keys', {}, withKey(`k${round}`));
      const { body: key } = await retry();
      const [deleted, ...replies] = await Promise.all([admin.delete(`/v1/keys/${key.id}`), retry(), retry(), retry()]);
      t.equal(deleted?.status, 200);
      for (const reply of replies) {
        if (reply.status === 409) isGone(t, reply, [key.id]);
        else t.same([reply.status, reply.body], [201, key]);
        shown.add(reply.status === 201);
      }
      const { body: history } = await admin.get(`/v1/keys/${key.id}/history`);
      t.equal(history.data[0].action, 'key.deleted', 'no look after the end');
      const seen = replies.filter(({ status }) => status === 201).length;
      t.equal(history.data.filter((event: Json) => event.action === 'key.revealed').length, seen);
    }
    t.comment(`with and without a key: ${[...shown]}`);
  },
);

t.test('an organization that never seals shows a key in the first reply alone', async (t) => {
  const service = await startService(t);
  const { admin } = service;
  await admin.patch('/v1/organization', { keyReveal: 'never' });
  const first = await admin.post('/v1/keys', {}, withKey('k'));
  t.match(first.body.key, /^lk_k_/);
  isGone(t, await admin.post('/v1/keys', {}, withKey('k')), [first.body.id]);
  await admin.patch('/v1/organization', { keyReveal: 'allowed' });
  isGone(t, await admin.post('/v1/keys', {}, withKey('k')), [first.body.id]);
  t.same(await looks(service), []);
});

t.test('a replay with a key counts as a reveal', async (t) => {
  const service = await startService(t, { limits: { callerLimit: many, addressLimit: many, revealLimit: 3 } });
  const { admin, later } = service;
  const wish = { email: 'p@p.example', permissions: ['read', 'write'] };
  const { body: partner } = await admin.post('/v1/partners', wish, withKey('k'));
  t.equal((await admin.post('/v1/partners', wish, withKey('k'))).status, 201, 'two of three');
  const created = [partner.id, ...partner.keys.map((key: Json) => key.id)];
  isGone(t, await admin.post('/v1/partners', wish, withKey('k')), created);
  t.equal((await admin.post(`/v1/keys/${partner.keys[0].id}/reveal`)).status, 429, 'one count for both');
  t.equal((await looks(service)).length, 2, 'what is refused is not recorded');
  later(minutes(15));
  isGone(t, await admin.post('/v1/partners', wish, withKey('k')), created);
});

t.test('operators may not look, so a replay shows them no key', async (t) => {
  const service = await startService(t);
  const { operator, organizationId } = service;
  const header = { ...withKey('k'), 'latchkey-organization': organizationId };
  const first = await operator.post('/v1/keys', {}, header);
  t.match(first.body.key, /^lk_k_/);
  isGone(t, await operator.post('/v1/keys', {}, header), [first.body.id]);
  t.same(await looks(service), []);
});

t.test('an access token is shown once and never again', async (t) => {
  const { admin, operator } = await startService(t);
  for (const [who, wish] of [
    [admin, { role: 'admin', name: 'Bob', email: 'bob@example.com', scopes: ['read'] }],
    [operator, { role: 'operator', name: 'Olga', scopes: ['read'] }],
  ] as const) {
    const first = await who.post('/v1/access-tokens', wish, withKey('k'));
    t.match(first.body.token, /^lk_[ao]_/);
    isGone(t, await who.post('/v1/access-tokens', wish, withKey('k')), [first.body.id]);
  }
});

t.test('a look that cannot be recorded opens nothing', async (t) => {
  const { admin, urls } = await startService(t);
  const first = await admin.post('/v1/keys', {}, withKey('k'));
  const role = new URL(urls.app).username;
  await dbQuery(urls.owner, `revoke execute on function history_append(text, text) from ${role}`);
  const again = await admin.post('/v1/keys', {}, withKey('k'));
  t.same([again.status, again.body.code], [503, 'unavailable']);
  t.notOk(JSON.stringify(again.body).includes(first.body.key));
  await dbQuery(urls.owner, `grant execute on function history_append(text, text) to ${role}`);
  t.equal((await admin.post('/v1/keys', {}, withKey('k'))).body.key, first.body.key);
});

t.test('a sealed value that was tampered with is recorded and refused, never another key', async (t) => {
  const service = await startService(t);
  const { admin, urls } = service;
  const first = await admin.post('/v1/keys', {}, withKey('k'));
  const { body: other } = await admin.post('/v1/keys', {});
  const swap = 'update api_keys set sealed = (select sealed from api_keys where id = $2) where id = $1';
  await dbQuery(urls.superuser, swap, [first.body.id, other.id]);
  isGone(t, await admin.post('/v1/keys', {}, withKey('k')), [first.body.id]);
  t.equal((await looks(service)).length, 1);
});

t.test('what is kept has no plaintext in it, nor the Idempotency-Key, whatever a caller took for one', async (t) => {
  const { admin, urls } = await startService(t);
  const { body: key } = await admin.post('/v1/keys', {});
  const wish = { email: 'p@p.example', permissions: ['read', 'write'], name: 'Kept' };
  await admin.post('/v1/partners', wish, withKey(key.key));
  await admin.post('/v1/partners', wish, withKey(key.key));
  const [row] = await dbQuery(urls.superuser, 'select reply::text as reply from idempotency_keys');
  t.match(row?.['reply'], /"Kept"/);
  t.match(row?.['reply'], /"secrets":\[\["keys",0,"key"\],\["keys",1,"key"\]\]/);
  t.notMatch(row?.['reply'], /lk_k_[0-9a-z]/);
  t.notOk((await dbDump(urls.superuser)).includes(key.key));
});
