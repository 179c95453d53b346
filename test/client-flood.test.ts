import { setTimeout as delay } from 'node:timers/promises';
import type { Test } from 'tap';
import { mintToken } from '../src/crypto/token.ts';
import { idSuffix, newId } from '../src/domain/ids.ts';
import { startBackend, startClient, startListening } from './support/hook.ts';
import { proxyTo } from './support/proxy.ts';
import { t } from './support/tap.ts';

const anyKey = () => mintToken({ prefix: 'lk', kind: 'k', idSuffix: idSuffix(newId('key')) }).reveal();

async function behindProxy(t: Test, options: { timeoutMs?: number } = {}) {
  const service = await startListening(t);
  const proxy = await proxyTo(t, service.url);
  const client = await startClient(t, { url: proxy.url, token: service.verifier.token, ...options });
  const { body: key } = await service.admin.post('/v1/keys', {});
  return { ...service, proxy, client, key };
}

t.test('invalid keys sent together with a valid one get their replies, and known keys stay known', async (t) => {
  // The test is about results, not time, and must also pass on a busy machine.
  const { admin, client, key } = await behindProxy(t, { timeoutMs: 20_000 });
  const verify = () => client.verify({ key: key.key, permission: 'read' });
  t.equal((await verify()).code, 'valid');
  const verifyInvalid = (make: (index: number) => { key: string; ip?: string }) =>
    Array.from({ length: 600 }, async (_, index) => (await client.verify({ ...make(index), permission: 'read' })).code);
  for (const [what, make] of [
    ['long', (index) => ({ key: '"'.repeat(990) + index })],
    ['of the maximum length that is sent', (index) => ({ key: `${'x'.repeat(196)}${index}` })],
    ['not storable', (index) => ({ key: `lk_k_\u0000\ud800${index}` })],
    ['with an invalid address', (index) => ({ key: `lk_k_${index}`, ip: 'unknown, '.repeat(2_000) })],
  ] as Array<[string, Parameters<typeof verifyInvalid>[0]]>) {
    const { body: other } = await admin.post('/v1/keys', {});
    const codes = verifyInvalid(make);
    const pending = client.verify({ key: other.key, permission: 'read' });
    t.equal((await pending).code, 'valid', `${what}: the valid key beside it`);
    t.same([...new Set(await Promise.all(codes))], ['malformed'], what);
    t.notOk(verify() instanceof Promise, `${what}: the key is still known`);
    await admin.delete(`/v1/keys/${other.id}`);
  }
});

t.test('an address with a zone is valid, and an invalid address is accepted for keys without allowedIps', async (t) => {
  const { admin, client, key } = await behindProxy(t);
  const { body: bound } = await admin.post('/v1/keys', { allowedIps: ['fe80::/10'] });
  const code = async (presented: string, ip: string) =>
    (await client.verify({ key: presented, permission: 'read', ip })).code;
  for (let round = 0; round < 2; round++) {
    t.equal(await code(bound.key, 'fe80::1%eth0'), 'valid');
    t.equal(await code(bound.key, 'unknown'), 'ip_not_allowed');
    t.equal(await code(key.key, 'unknown'), 'valid');
    t.equal(await code(key.key, '203.0.113.7:4711'), 'valid');
  }
});

t.test('an invalid forwarded address does not cause a 503', async (t) => {
  const { url, verifier, key } = await behindProxy(t);
  const backend = await startBackend(t, { url, token: verifier.token }, undefined, { trustProxy: true });
  for (const forwarded of ['unknown', '203.0.113.7:4711', 'x'.repeat(8_000)]) {
    const headers = { 'x-api-key': key.key, 'x-forwarded-for': forwarded };
    t.equal((await fetch(`${backend.url}/hello`, { headers })).status, 200, forwarded.slice(0, 20));
  }
});

t.test('a client that keeps exhausting a small limit does not delay clients with unknown keys', async (t) => {
  const { admin, proxy, client } = await behindProxy(t);
  const { body: busy } = await admin.post('/v1/keys', { rateLimit: { requests: 10, windowSeconds: 1 } });
  const verifyBusy = async () => (await client.verify({ key: busy.key, permission: 'read' })).code;
  await verifyBusy();
  proxy.lag(100, 'POST /v1/verify');
  let isOver = false;
  const load = (async () => {
    const calls: Array<Promise<string>> = [];
    while (!isOver) {
      calls.push(verifyBusy());
      await delay(1);
    }
    await Promise.all(calls);
  })();
  await delay(500);
  const startedAtMs = performance.now();
  const codes = Promise.all(
    [1, 2, 3].map(async () => (await client.verify({ key: anyKey(), permission: 'read' })).code),
  );
  const answered = await Promise.race([codes, delay(1_900, 'not yet', { ref: false })]);
  const tookMs = performance.now() - startedAtMs;
  isOver = true;
  await load;
  t.same(answered, ['not_found', 'not_found', 'not_found'], `after ${tookMs} ms`);
});

t.test(
  'while Latchkey is silent, thousands of calls wait for at most two time limits, and few requests are sent',
  async (t) => {
    const timeoutMs = 1_000;
    const { app, proxy, client } = await behindProxy(t, { timeoutMs });
    let calls = 0;
    app.server.on('request', ({ url }) => {
      if (url === '/v1/verify/batch') calls += 1;
    });
    proxy.lag(60_000, 'POST /v1/verify');
    const startedAtMs = performance.now();
    const settled = await Promise.allSettled(
      Array.from({ length: 9_000 }, (_, index) => client.verify({ key: `lk_k_${index}`, permission: 'read' })),
    );
    const tookMs = performance.now() - startedAtMs;
    t.ok(settled.every(({ status }) => status === 'rejected'));
    t.ok(tookMs < 3.5 * timeoutMs, `${tookMs} ms`);
    t.ok(calls <= 16, `${calls} calls`);
  },
);
