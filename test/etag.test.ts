import type { Test } from 'tap';
import { type Client, type Reply, startService, type TestService } from './support/app.ts';
import { eventually } from './support/process.ts';
import { t } from './support/tap.ts';

interface Subject {
  path: string;
  /** The reply that created the resource; undefined if the organization existed before. */
  created: Reply | undefined;
  client: Client;
}

async function subjectsOf({ admin, operator, organizationId }: TestService): Promise<Record<string, Subject>> {
  const key = await admin.post('/v1/keys', { name: 'Old', metadata: { b: 1, a: [{ d: 1, c: 2 }] } });
  const input = { email: 'p@p.example', permissions: ['write', 'read'], rateLimit: { requests: 5, windowSeconds: 60 } };
  const partner = await admin.post('/v1/partners', input);
  const organization = await operator.post('/v1/organizations', { name: 'Other' });
  return {
    'a key': { path: `/v1/keys/${key.body.id}`, created: key, client: admin },
    'a partner': { path: `/v1/partners/${partner.body.id}`, created: partner, client: admin },
    "the caller's organization": { path: '/v1/organization', created: undefined, client: admin },
    'an organization by its id': { path: `/v1/organizations/${organizationId}`, created: undefined, client: operator },
    'a new organization': {
      path: `/v1/organizations/${organization.body.id}`,
      created: organization,
      client: operator,
    },
  };
}

const tagOf = async ({ client, path }: Subject): Promise<string> => String((await client.get(path)).headers['etag']);

async function isRefused(t: Test, reply: Reply, status: number, code: string): Promise<void> {
  t.same([reply.status, reply.body.code], [status, code]);
}

t.test('every reply with a whole resource has its version, and a change replies with the next version', async (t) => {
  const service = await startService(t);
  for (const [what, subject] of Object.entries(await subjectsOf(service))) {
    await t.test(what, async (t) => {
      const { path, created, client } = subject;
      const first = await tagOf(subject);
      t.match(first, /^"[\w-]{22}"$/);
      if (created !== undefined)
        t.equal(created.headers['etag'], first, 'the reply that created it has the same version');
      const idle = await client.patch(path, {});
      t.equal(idle.headers['etag'], first, 'a change without an effect keeps the version');
      const changed = await client.patch(path, { name: `Of ${what}` });
      t.not(changed.headers['etag'], first);
      t.equal(changed.headers['etag'], await tagOf(subject));
    });
  }
});

t.test('both routes to an organization return the same version', async (t) => {
  const service = await startService(t);
  const subjects = await subjectsOf(service);
  const [own, byId] = [subjects["the caller's organization"], subjects['an organization by its id']] as Subject[];
  const tag = await tagOf(own as Subject);
  t.equal(await tagOf(byId as Subject), tag);
  const change = await service.operator.patch(String(byId?.path), { name: 'New' }, { 'if-match': tag });
  t.equal(change.status, 200);
  t.equal(await tagOf(own as Subject), change.headers['etag']);
});

t.test('a change for another version is rejected', async (t) => {
  const service = await startService(t);
  const actions = async () => (await service.admin.get('/v1/history?limit=200')).body.data.length as number;
  for (const [what, subject] of Object.entries(await subjectsOf(service))) {
    await t.test(what, async (t) => {
      const { path, client } = subject;
      const version = await tagOf(subject);
      const { body: present, headers } = await client.patch(path, { name: 'Somebody else was first' });
      const events = await actions();
      for (const patch of [{ name: 'Mine' }, {}]) {
        await isRefused(t, await client.patch(path, patch, { 'if-match': version }), 412, 'precondition_failed');
      }
      t.equal(await actions(), events, 'no event is recorded');
      t.match((await client.get(path)).body, { name: present.name });
      const secondChange = await client.patch(path, { name: 'Mine' }, { 'if-match': String(headers['etag']) });
      t.match(secondChange, { status: 200, body: { name: 'Mine' } });
      t.equal((await client.patch(path, { name: 'Mine too' })).status, 200, 'without If-Match nothing is checked');
    });
  }
});

t.test('If-Match follows RFC 9110 section 13.1.1', async (t) => {
  const service = await startService(t);
  const subject = (await subjectsOf(service))['a key'] as Subject;
  const { path, client } = subject;
  const patch = async (ifMatch: string) =>
    client.patch(path, { name: `N ${Math.random()}` }, { 'if-match': ifMatch.replace('TAG', await tagOf(subject)) });
  for (const good of [
    'TAG',
    '*',
    '"x", TAG',
    'TAG , "x"',
    ', ,TAG,',
    'W/"x",\tTAG',
    '"a,b", TAG',
    '"", TAG',
    '"é", TAG',
  ]) {
    t.equal((await patch(good)).status, 200, good);
  }
  const stale = await tagOf(subject);
  await patch('*');
  const others = [stale, '"x"', 'W/TAG', '""', `"a", W/"b", ${stale}`];
  for (const other of others) await isRefused(t, await patch(other), 412, 'precondition_failed');
  const malformed = [
    '',
    'x',
    '"x',
    'x"',
    '*, TAG',
    'TAG, *',
    '"*',
    'w/"x"',
    'W/ "x"',
    '"a" "b"',
    ',',
    '"a";"b"',
    'TAGTAG',
  ];
  for (const bad of malformed) {
    const reply = await patch(bad.replaceAll('TAG', stale));
    await isRefused(t, reply, 400, 'validation_failed');
    t.equal(reply.body.errors[0].path, 'headers.if-match', bad);
  }
  const startedAt = performance.now();
  await isRefused(t, await patch(`${', '.repeat(7_500)}x`), 400, 'validation_failed');
  t.ok(performance.now() - startedAt < 1_000, 'a long value is rejected as fast');
});

t.test('the version covers what can be changed, not use or time', async (t) => {
  const service = await startService(t);
  const { admin, verifier, app } = service;
  const expiresAt = new Date(Date.now() + 3_600_000).toISOString();
  const { body: key, headers } = await admin.post('/v1/keys', { expiresAt });
  await verifier.post('/v1/verify', { key: key.key, permission: 'read' });
  await service.verification.usage.flush();
  await eventually(async () => (await admin.get(`/v1/keys/${key.id}`)).body.lastUsedAt !== null);
  service.later(7_200_000);
  const expired = await admin.get(`/v1/keys/${key.id}`);
  t.equal(expired.body.status, 'expired');
  t.equal(expired.headers['etag'], headers['etag']);
  const head = await app.inject({
    method: 'HEAD',
    url: `/v1/keys/${key.id}`,
    headers: { authorization: `Bearer ${admin.token}` },
  });
  t.equal(head.headers['etag'], headers['etag']);
});

t.test('every change gives a new version, whichever command makes it', async (t) => {
  const service = await startService(t);
  const { admin } = service;
  const subjects = await subjectsOf(service);
  const changes: Record<string, Array<(path: string) => Promise<Reply>>> = {
    'a key': [
      ...[{ name: 'x' }, { expiresAt: '2099-01-01T00:00:00Z' }, { rateLimit: { requests: 1, windowSeconds: 1 } }],
      ...[{ allowedIps: ['10.0.0.0/8'] }, { metadata: { a: [{ d: 1, c: 3 }] } }],
    ].map((patch) => (path) => admin.patch(path, patch)),
    'a partner': [...[{ name: 'x' }, { email: 'q@p.example' }, { permissions: ['read'] }, { rateLimit: null }]].map(
      (patch) => (path) => admin.patch(path, patch),
    ),
    "the caller's organization": [
      (path) => admin.patch(path, { keyReveal: 'never' }),
      () => admin.put('/v1/rate-limit', { requests: 7, windowSeconds: 60 }),
    ],
  };
  for (const path of ['a key', 'a partner']) changes[path]?.push((path) => admin.delete(path));
  for (const [what, commands] of Object.entries(changes)) {
    const subject = subjects[what] as Subject;
    const tags = [await tagOf(subject)];
    for (const send of commands) {
      t.equal((await send(subject.path)).status, 200);
      tags.push(await tagOf(subject));
    }
    t.equal(new Set(tags).size, commands.length + 1, what);
  }
});

t.test('a deleted resource is reported before a stale version', async (t) => {
  const service = await startService(t);
  const { admin } = service;
  const { body: key, headers } = await admin.post('/v1/keys', {});
  const ifMatch = { 'if-match': String(headers['etag']) };
  await isRefused(t, await admin.patch('/v1/keys/key_x', { name: 'x' }, { 'if-match': '*' }), 404, 'not_found');
  await admin.delete(`/v1/keys/${key.id}`);
  await isRefused(t, await admin.patch(`/v1/keys/${key.id}`, { name: 'x' }, ifMatch), 409, 'already_deleted');
});

t.test('of many concurrent changes for one version exactly one succeeds', async (t) => {
  const service = await startService(t);
  for (const [what, subject] of Object.entries(await subjectsOf(service))) {
    const { path, client } = subject;
    for (let round = 0; round < 10; round++) {
      const ifMatch = { 'if-match': await tagOf(subject) };
      const names = Array.from({ length: 8 }, (_, index) => `${round} ${index}`);
      const replies = await Promise.all(names.map((name) => client.patch(path, { name }, ifMatch)));
      const won = replies.filter(({ status }) => status === 200);
      t.equal(won.length, 1, what);
      t.equal(replies.filter(({ status }) => status === 412).length, 7);
      t.equal((await client.get(path)).body.name, won[0]?.body.name);
    }
  }
});
