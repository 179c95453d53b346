import type { RequestListener } from 'node:http';
import type { Test } from 'tap';
import type { ClientOptions } from '../clients/node/src/client.ts';
import { createDatabase, dbQuery } from './support/database.ts';
import { startBackend, startClient, startListening } from './support/hook.ts';
import { eventually } from './support/process.ts';
import { proxyTo } from './support/proxy.ts';
import { t } from './support/tap.ts';

// The connection to Latchkey fails in part or completely. No answer is wrong, and known keys work for a while.

async function behindProxy(t: Test, options: Partial<ClientOptions> = {}) {
  const service = await startListening(t);
  const proxy = await proxyTo(t, service.url);
  const client = await startClient(t, { url: proxy.url, token: service.verifier.token, ...options });
  const { body: key } = await service.admin.post('/v1/keys', {});
  const { body: unknownKey } = await service.admin.post('/v1/keys', {});
  const verify = async (presented: string = key.key) => {
    try {
      return (await client.verify({ key: presented, permission: 'read' })).code;
    } catch (error) {
      return (error as Error).name;
    }
  };
  /** Whether the verdict is returned synchronously. */
  const isFromMemory = (presented: string = key.key) => {
    const answer = client.verify({ key: presented, permission: 'read' });
    if (answer instanceof Promise) answer.catch(() => undefined);
    return !(answer instanceof Promise);
  };
  t.equal(await verify(), 'valid');
  return { service, proxy, client, key, unknownKey, verify, isFromMemory };
}

t.test(
  'if the stream goes silent, no verdict older than 5 s is returned, and then each call goes to Latchkey',
  async (t) => {
    const { service, proxy, client, key, verify, isFromMemory } = await behindProxy(t);
    proxy.swallow(true, 'GET /v1/changes');
    const deletedAtMs = performance.now();
    await service.admin.delete(`/v1/keys/${key.id}`);
    let lastGoodMs = 0;
    await eventually(async () => {
      const askedAtMs = performance.now();
      const code = await verify();
      if (code === 'valid') lastGoodMs = askedAtMs;
      return code === 'deleted';
    });
    t.ok(lastGoodMs - deletedAtMs < 5_000, `answered for ${lastGoodMs - deletedAtMs} ms`);

    const { body: other } = await service.admin.post('/v1/keys', {});
    await eventually(async () => !client.isLive(), 6_000);
    t.equal(await verify(other.key), 'valid');
    t.notOk(isFromMemory(other.key));
    await service.admin.post(`/v1/keys/${other.id}/suspend`);
    t.equal(await verify(other.key), 'suspended', 'immediately, because each call goes to Latchkey');
    proxy.swallow(false);
    proxy.end();
    await eventually(async () => client.isLive(), 15_000);
    await service.admin.post(`/v1/keys/${other.id}/resume`);
    await eventually(async () => (await verify(other.key)) === 'valid', 1_000);
    await eventually(async () => isFromMemory(other.key), 2_000);
  },
);

t.test('after the stream was cut while a key changed, no older verdict is used', async (t) => {
  const { service, proxy, client, key, verify } = await behindProxy(t);
  proxy.refuse(true);
  proxy.end();
  await eventually(async () => !client.isLive());
  t.equal(await verify(), 'valid', 'from memory, while Latchkey does not answer');
  await service.admin.delete(`/v1/keys/${key.id}`);
  proxy.refuse(false);
  await eventually(async () => client.isLive(), 10_000);
  t.equal(await verify(), 'deleted');
});

for (const how of ['cut off', 'silent'] as const) {
  t.test(`if Latchkey ${how}, known valid keys work until cacheSeconds, unknown keys never`, async (t) => {
    const cacheSeconds = 3;
    const { proxy, client, unknownKey, verify, isFromMemory } = await behindProxy(t, {
      cacheSeconds,
      timeoutMs: 500,
      reportEveryMs: 100,
    });
    const brokenAtMs = performance.now();
    proxy.refuse(true);
    if (how === 'silent') proxy.swallow(true);
    else proxy.end();
    let lastGoodMs = 0;
    let slowestMs = 0;
    let unknown = 0;
    await eventually(async () => {
      const askedAtMs = performance.now();
      const code = await verify();
      slowestMs = Math.max(slowestMs, performance.now() - askedAtMs);
      if (code === 'valid') lastGoodMs = askedAtMs;
      if ((await verify(unknownKey.key)) === 'valid') unknown += 1;
      return code === 'LatchkeyUnavailable';
    });
    t.ok(lastGoodMs - brokenAtMs <= cacheSeconds * 1_000, `for ${lastGoodMs - brokenAtMs} ms`);
    t.ok(lastGoodMs - brokenAtMs > (cacheSeconds - 2) * 1_000, `for ${lastGoodMs - brokenAtMs} ms`);
    t.ok(slowestMs < 2_500, `no call takes longer than two time limits: ${slowestMs} ms`);
    t.equal(unknown, 0);
    proxy.swallow(false);
    proxy.refuse(false);
    proxy.end();
    await eventually(async () => (await verify(unknownKey.key)) === 'valid', 5_000);
    await eventually(async () => client.isLive(), 12_000);
    t.equal(await verify(), 'valid');
    await eventually(async () => isFromMemory(), 2_000);
  });
}

t.test('while Latchkey is unavailable, the last known limits and expiry times hold', async (t) => {
  const { service, proxy, client } = await behindProxy(t, { timeoutMs: 500 });
  const { body: partner } = await service.admin.post('/v1/partners', { email: 'p@p.example', permissions: ['read'] });
  const [limited] = partner.keys;
  await service.admin.patch(`/v1/keys/${limited.id}`, { rateLimit: { requests: 5, windowSeconds: 3_600 } });
  const expiresAt = new Date(service.clock.nowMs() + 5_000).toISOString();
  const { body: expiring } = await service.admin.post('/v1/keys', { partnerId: partner.id, expiresAt });
  const code = async (key: string) => (await client.verify({ key, permission: 'read' })).code;
  await eventually(async () => (await code(limited.key)) === 'valid' && (await code(expiring.key)) === 'valid');
  proxy.refuse(true);
  proxy.end();
  await eventually(async () => !client.isLive());
  const codes = [];
  for (let call = 0; call < 6; call++) codes.push(await code(limited.key));
  t.same(codes, ['valid', 'valid', 'valid', 'valid', 'rate_limited', 'rate_limited']);
  await eventually(async () => (await code(expiring.key)) === 'expired', 6_000);
});

t.test('a reply that was in flight when its key changed is not cached', async (t) => {
  const { service, proxy, client, key, unknownKey, isFromMemory } = await behindProxy(t);
  proxy.hold(true, 'POST /v1/verify');
  const pending = client.verify({ key: unknownKey.key, permission: 'read' });
  // Latchkey has replied; the reply waits in the proxy.
  await eventually(async () => proxy.isHolding());
  await service.admin.delete(`/v1/keys/${unknownKey.id}`);
  // The stream is not held. The change of another key shows that the earlier change has arrived.
  await service.admin.post(`/v1/keys/${key.id}/suspend`);
  await eventually(async () => !isFromMemory());
  proxy.hold(false);
  t.equal((await pending).code, 'valid', 'the call began before the change');
  t.notOk(isFromMemory(unknownKey.key), 'the reply is not used for later calls');
  t.equal((await client.verify({ key: unknownKey.key, permission: 'read' })).code, 'deleted');
});

t.test('a reply that was in flight when changes may have been missed is not cached', async (t) => {
  const { service, proxy, client, unknownKey, isFromMemory } = await behindProxy(t);
  proxy.hold(true, 'POST /v1/verify');
  const pending = client.verify({ key: unknownKey.key, permission: 'read' });
  await eventually(async () => proxy.isHolding());
  await dbQuery(service.urls.superuser, "select pg_notify('latchkey_changes', '*')");
  await eventually(async () => !isFromMemory());
  proxy.hold(false);
  t.equal((await pending).code, 'valid', 'the call began before the change');
  t.notOk(isFromMemory(unknownKey.key), 'the reply is not used for later calls');
});

t.test('uses whose report a proxy dropped are reported with the next one', async (t) => {
  const { app, url, admin, verifier, verification } = await startListening(t);
  const [answer] = app.server.listeners('request') as RequestListener[];
  let refusals = 0;
  let isRefusing = false;
  app.server.removeAllListeners('request').on('request', (request, response) => {
    if (!isRefusing || request.url !== '/v1/verify/batch') answer?.(request, response);
    else response.writeHead(503).end('busy', () => refusals++);
  });
  const client = await startClient(t, { url, token: verifier.token, reportEveryMs: 50 });
  const { body: key } = await admin.post('/v1/keys', {});
  const verify = () => client.verify({ key: key.key, permission: 'read' });
  await verify();
  isRefusing = true;
  for (let round = 1; round < 4; round++) {
    t.notOk(verify() instanceof Promise, 'from memory');
    await eventually(async () => refusals >= round);
  }
  isRefusing = false;
  t.notOk(verify() instanceof Promise, 'from memory');
  await client.close();
  await verification.usage.flush();
  t.match((await admin.get(`/v1/keys/${key.id}/usage`)).body.total, { allowed: 5 });
});

t.test('a rejection that was in flight when its key was resumed is not returned to later requests', async (t) => {
  const { service, proxy, client, key, unknownKey, isFromMemory } = await behindProxy(t);
  await service.admin.post(`/v1/keys/${unknownKey.id}/suspend`);
  proxy.hold(true, 'POST /v1/verify');
  const verify = () => client.verify({ key: unknownKey.key, permission: 'read' });
  const before = verify();
  await eventually(async () => proxy.isHolding());
  await service.admin.post(`/v1/keys/${unknownKey.id}/resume`);
  await service.admin.post(`/v1/keys/${key.id}/suspend`);
  await eventually(async () => !isFromMemory());
  const after = verify();
  proxy.hold(false);
  t.same([(await before).code, (await after).code], ['suspended', 'valid']);
});

t.test('uses during a report are reported even if the client is closed', async (t) => {
  const { service, proxy, client, key, isFromMemory } = await behindProxy(t, { reportEveryMs: 50 });
  proxy.hold(true, 'POST /v1/verify');
  for (let uses = 0; uses < 3; uses++) t.ok(isFromMemory());
  await eventually(async () => proxy.isHolding());
  for (let uses = 0; uses < 4; uses++) t.ok(isFromMemory());
  const closed = client.close();
  proxy.hold(false);
  await closed;
  await service.verification.usage.flush();
  t.match((await service.admin.get(`/v1/keys/${key.id}/usage`)).body.total, { allowed: 1 + 3 + 4 });
});

t.test("if Latchkey rejects the client's token, no key is accepted", async (t) => {
  const { service, client, key } = await behindProxy(t);
  const { body: tokens } = await service.admin.get('/v1/access-tokens');
  const own = tokens.data.find(({ role }: { role: string }) => role === 'verifier');
  await service.admin.delete(`/v1/access-tokens/${own.id}`);
  await eventually(async () => {
    try {
      await client.verify({ key: key.key, permission: 'read' });
      return false;
    } catch (error) {
      return (error as Error).name === 'LatchkeyUnavailable';
    }
  }, 3_000);
});

t.test('while Latchkey itself receives no changes, it is called each time', async (t) => {
  const { url, admin, verifier, verification } = await startListening(t);
  const client = await startClient(t, { url, token: verifier.token });
  const { body: key } = await admin.post('/v1/keys', {});
  await client.verify({ key: key.key, permission: 'read' });
  await verification.feed.close();
  await eventually(async () => !client.isLive(), 6_000);
  t.ok(client.verify({ key: key.key, permission: 'read' }) instanceof Promise);
  await admin.delete(`/v1/keys/${key.id}`);
  t.equal((await client.verify({ key: key.key, permission: 'read' })).code, 'deleted');
});

t.test('uses that Latchkey cannot count without its database are reported again', async (t) => {
  const urls = await createDatabase(t);
  const database = await proxyTo(t, urls.app);
  // The change feed has a separate connection, so the client stays live.
  const service = await startListening(t, { urls: { ...urls, app: database.url }, state: { listenUrl: urls.app } });
  const { url, admin, verifier, verification } = service;
  const client = await startClient(t, { url, token: verifier.token, reportEveryMs: 200 });
  const { body: key } = await admin.post('/v1/keys', {});
  const verify = () => client.verify({ key: key.key, permission: 'read' });
  await verify();
  let reports = 0;
  service.app.server.on('request', ({ url: path }, response) => {
    if (path === '/v1/verify/batch') response.once('finish', () => reports++);
  });
  database.refuse(true);
  database.end();
  verification.records.invalidate([key.id]);
  for (let uses = 0; uses < 5; uses++) t.notOk(verify() instanceof Promise, 'from memory');
  await eventually(async () => reports > 0);
  database.refuse(false);
  await eventually(
    async () => (await verifier.post('/v1/verify', { key: key.key, permission: 'read', cost: 0 })).body.valid,
  );
  t.notOk(verify() instanceof Promise, 'the key stays known');
  await client.close();
  await verification.usage.flush();
  t.match((await admin.get(`/v1/keys/${key.id}/usage`)).body.total, { allowed: 7 });
});

t.test(
  'a backend replies 503 as a problem while Latchkey is unavailable, and recovers without a restart',
  async (t) => {
    const service = await startListening(t);
    const proxy = await proxyTo(t, service.url);
    const backend = await startBackend(t, { url: proxy.url, token: service.verifier.token, timeoutMs: 500 });
    const { body: key } = await service.admin.post('/v1/keys', {});
    proxy.refuse(true);
    proxy.end();
    const response = await fetch(`${backend.url}/hello`, { headers: { 'x-api-key': key.key } });
    t.equal(response.status, 503);
    t.match(response.headers.get('content-type'), /^application\/problem\+json/);
    t.equal(response.headers.get('retry-after'), '1');
    t.match(await response.json(), { code: 'unavailable', status: 503 });
    t.equal(await backend.status(undefined), 401, 'a request without a key is still a 401');
    proxy.refuse(false);
    await eventually(async () => (await backend.status(key.key)) === 200, 5_000);
  },
);
