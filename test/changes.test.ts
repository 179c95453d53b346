import type { AddressInfo } from 'node:net';
import type { Test } from 'tap';
import { startService } from './support/app.ts';
import { createDatabase, dbQuery } from './support/database.ts';
import { follow } from './support/event-stream.ts';
import { eventually } from './support/process.ts';
import { proxyTo } from './support/proxy.ts';
import { t } from './support/tap.ts';

async function startListening(t: Test, overrides: Parameters<typeof startService>[1] = {}) {
  const service = await startService(t, overrides);
  await service.app.listen({ port: 0, host: '127.0.0.1' });
  await eventually(async () => service.verification.feed.isLive());
  return { ...service, url: `http://127.0.0.1:${(service.app.server.address() as AddressInfo).port}` };
}

t.test(
  'a verifier receives the changes of its own organization, a global verifier those of all organizations',
  async (t) => {
    const { url, admin, operator, verifier, organizationId } = await startListening(t);
    const { body: other } = await operator.post('/v1/organizations', { name: 'Other' });
    const inOther = { 'latchkey-organization': other.id };
    const { body: global } = await operator.post('/v1/access-tokens', {
      role: 'verifier',
      scopes: ['read'],
      name: 'All',
    });
    const own = await follow(t, url, verifier.token);
    const all = await follow(t, url, global.token);
    const named = await follow(t, url, global.token, inOther);
    t.match(own, { status: 200, headers: { 'content-type': 'text/event-stream', 'cache-control': /no-store/ } });
    t.match(await own.until('hello'), { data: { heartbeatMs: 1_000, silenceAllowedMs: 5_000 } });
    t.equal(own.events[0]?.event, 'hello');
    const { data: beat } = await own.until('heartbeat');
    t.ok(beat.behindMs >= 0 && beat.behindMs < 2_000, 'a heartbeat contains the delay');
    t.ok(Math.abs(Date.parse(beat.at) - Date.now()) < 10_000);
    await Promise.all([all.until('heartbeat'), named.until('heartbeat')]);

    const { body: partner } = await admin.post('/v1/partners', { email: 'p@p.example', permissions: ['read'] });
    const { body: otherKey } = await operator.post('/v1/keys', {}, inOther);
    await operator.delete(`/v1/keys/${otherKey.id}`, inOther);
    await admin.delete(`/v1/keys/${partner.keys[0].id}`);
    await admin.patch(`/v1/partners/${partner.id}`, { name: 'Renamed' });
    await admin.put('/v1/rate-limit', { requests: 5, windowSeconds: 60 });
    const ownIds = [partner.keys[0].id, partner.id, organizationId];
    for (const id of ownIds) {
      await own.until('change', ({ ids }) => ids.includes(id));
      await all.until('change', ({ ids }) => ids.includes(id));
    }
    await all.until('change', ({ ids }) => ids.includes(otherKey.id));
    await named.until('change', ({ ids }) => ids.includes(otherKey.id));
    t.notMatch(own.text(), otherKey.id);
    for (const id of ownIds) t.notMatch(named.text(), id);
    t.notMatch(all.text(), 'token_', 'the stream never names access tokens');
  },
);

t.test('a heartbeat is sent each second, a change immediately', async (t) => {
  const { url, admin, verifier } = await startListening(t);
  const stream = await follow(t, url, verifier.token);
  await eventually(async () => stream.events.filter(({ event }) => event === 'heartbeat').length >= 4, 10_000);
  const beats = stream.events.filter(({ event }) => event === 'heartbeat').map(({ atMs }) => atMs);
  const gaps = beats.slice(1).map((atMs, index) => atMs - (beats[index] ?? 0));
  t.ok(Math.max(...gaps) < 3_000, `${gaps}`);
  const { body: key } = await admin.post('/v1/keys', {});
  await admin.delete(`/v1/keys/${key.id}`);
  const deletedAtMs = performance.now();
  const { atMs } = await stream.until('change', ({ ids }) => ids.includes(key.id));
  t.ok(atMs - deletedAtMs < 500, `${atMs - deletedAtMs} ms after the reply`);
});

t.test('when a token is revoked or expires, its own streams end and others continue', async (t) => {
  const { url, admin, verifier, later } = await startListening(t);
  const make = async (more = {}) =>
    (await admin.post('/v1/access-tokens', { role: 'verifier', scopes: ['read'], name: 'v', ...more })).body;
  const revoked = await make();
  const expiring = await make({ expiresAt: new Date(Date.now() + 60_000).toISOString() });
  const [a, b, c] = await Promise.all(
    [revoked.token, expiring.token, verifier.token].map((token) => follow(t, url, token)),
  );
  if (a === undefined || b === undefined || c === undefined) throw new Error('no streams');
  await Promise.all([a, b, c].map((stream) => stream.until('heartbeat')));
  await admin.delete(`/v1/access-tokens/${revoked.id}`);
  t.match(await a.until('end'), { data: { reason: 'token_changed' } });
  await eventually(async () => a.isOver());
  t.equal((await follow(t, url, revoked.token)).status, 401);
  later(61_000);
  t.match(await b.until('end'), { data: { reason: 'token_expired' } });
  await eventually(async () => b.isOver());
  t.notOk(c.isOver());
  c.close();
});

t.test('an organization cannot take more than half of the free streams, even with many tokens', async (t) => {
  const { url, admin, operator, verifier } = await startListening(t, { changeStreams: 8 });
  const input = { role: 'verifier', scopes: ['read'], name: 'v' };
  const tokensOfOthers = async (name: string) => {
    const { body: other } = await operator.post('/v1/organizations', { name });
    const { body } = await operator.post('/v1/access-tokens', input, { 'latchkey-organization': other.id });
    return body.token as string;
  };
  const { body: second } = await admin.post('/v1/access-tokens', input);
  const first = await follow(t, url, verifier.token);
  t.equal(first.status, 200);
  for (const token of [verifier.token, second.token, second.token]) {
    t.equal((await follow(t, url, token)).status, 200);
  }
  for (const token of [verifier.token, second.token]) {
    const refused = await follow(t, url, token);
    t.match(refused, { status: 429, headers: { 'retry-after': '5', 'content-type': /problem/ } });
  }
  const [busy, late, later] = [await tokensOfOthers('A'), await tokensOfOthers('B'), await tokensOfOthers('C')];
  for (let round = 0; round < 2; round++) t.equal((await follow(t, url, busy)).status, 200);
  t.equal((await follow(t, url, busy)).status, 429, 'it already has two of the four remaining streams');
  t.equal((await follow(t, url, late)).status, 200);
  const { body: global } = await operator.post('/v1/access-tokens', input);
  t.equal((await follow(t, url, global.token)).status, 200, 'a verifier of all organizations is a group of its own');
  t.match(await follow(t, url, later), { status: 503, headers: { 'retry-after': '5' } }, 'all are taken');
  first.close();
  await eventually(async () => (await follow(t, url, later)).status === 200);
});

t.test('a client that does not read gets a reset, and its changes are not buffered without bound', async (t) => {
  const { url, verifier, urls, organizationId } = await startListening(t);
  const slow = await follow(t, url, verifier.token);
  await slow.until('heartbeat');
  slow.pause();
  // More than the kernel buffers for a client that does not read.
  const notices = 600_000;
  await dbQuery(
    urls.superuser,
    `select pg_notify('latchkey_changes', 'key_' || lpad(number::text, 26, '0') || ' ' || $1)
     from generate_series(1, ${notices}) as number`,
    [organizationId],
  );
  const last = `key_${String(notices).padStart(26, '0')}`;
  const reader = await follow(t, url, verifier.token);
  await reader.until('heartbeat');
  slow.resume();
  await slow.until('reset');
  t.ok(slow.text().length < (notices * last.length * 3) / 4, `${slow.text().length} bytes`);
  t.notOk(slow.isOver());
});

for (const how of ['swallow', 'end'] as const) {
  t.test(
    `if the service's own feed is interrupted (${how}), clients receive down, then reset, then heartbeats`,
    async (t) => {
      const urls = await createDatabase(t);
      const proxy = await proxyTo(t, urls.app);
      const { url, verifier, verification } = await startListening(t, { urls, state: { listenUrl: proxy.url } });
      const stream = await follow(t, url, verifier.token);
      await stream.until('heartbeat');
      proxy.refuse(true);
      if (how === 'swallow') proxy.swallow(true);
      else proxy.end();
      await stream.until('down');
      const beats = () => stream.events.filter(({ event }) => event === 'heartbeat').length;
      const before = beats();
      await dbQuery(urls.superuser, "update organizations set name = 'Changed while nobody listened'");
      await eventually(async () => stream.text().endsWith(':\n\n'), 5_000);
      t.equal(beats(), before, 'no heartbeat while the feed is interrupted');
      proxy.swallow(false);
      proxy.refuse(false);
      proxy.end();
      await eventually(async () => verification.feed.isLive(), 8_000);
      const reset = await stream.until('reset');
      await eventually(async () => beats() > before);
      const next = stream.events.filter(({ event }) => event === 'heartbeat')[before];
      t.ok((next?.atMs ?? 0) >= reset.atMs, 'in this order');
    },
  );
}

t.test('the stream of a token that was revoked during an interruption ends', async (t) => {
  const urls = await createDatabase(t);
  const proxy = await proxyTo(t, urls.app);
  const { url, verifier } = await startListening(t, { urls, state: { listenUrl: proxy.url } });
  const stream = await follow(t, url, verifier.token);
  await stream.until('heartbeat');
  proxy.refuse(true);
  proxy.end();
  await stream.until('down');
  await dbQuery(urls.superuser, 'update access_tokens set deleted_at = now() where role = $1', ['verifier']);
  proxy.refuse(false);
  t.match(await stream.until('end'), { data: { reason: 'token_changed' } });
});

t.test('at shutdown streams end with a reason, and do not delay it', async (t) => {
  const { url, verifier, app, logLines } = await startListening(t);
  const streams = await Promise.all([1, 2, 3].map(() => follow(t, url, verifier.token)));
  await Promise.all(streams.map((stream) => stream.until('heartbeat')));
  const startedAtMs = performance.now();
  await app.close();
  t.ok(performance.now() - startedAtMs < 5_000);
  for (const stream of streams) {
    t.match(await stream.until('end'), { data: { reason: 'stopping' } });
    await eventually(async () => stream.isOver());
  }
  t.match(logLines.join(''), /"path":"\/v1\/changes","status":200/, 'each stream has a log line');
});

t.test('HEAD is rejected, and a token in the gateway header is not accepted', async (t) => {
  const { app, verifier } = await startService(t);
  const head = await app.inject({
    method: 'HEAD',
    url: '/v1/changes',
    headers: { authorization: `Bearer ${verifier.token}` },
  });
  t.equal(head.statusCode, 405);
  t.equal((await app.inject({ url: '/v1/changes', headers: { 'x-latchkey-token': verifier.token } })).statusCode, 401);
});
