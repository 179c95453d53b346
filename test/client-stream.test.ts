import type { Test } from 'tap';
import { dbQuery } from './support/database.ts';
import { startClient, startListening } from './support/hook.ts';
import { eventually } from './support/process.ts';
import { proxyTo } from './support/proxy.ts';
import { t } from './support/tap.ts';

// What the stream of changes may do wrong without ending: nothing is answered from memory that is older than 5 s.

const stream = 'GET /v1/changes';

async function behindProxy(t: Test) {
  const service = await startListening(t);
  const proxy = await proxyTo(t, service.url);
  const turns: Array<[isLive: boolean, cause: string]> = [];
  const onTurn = (isLive: boolean, cause?: unknown) => void turns.push([isLive, (cause as Error)?.message]);
  const client = await startClient(t, { url: proxy.url, token: service.verifier.token, onTurn });
  const { body: key } = await service.admin.post('/v1/keys', {});
  const ask = () => client.verify({ key: key.key, permission: 'read' });
  t.equal((await ask()).code, 'valid');
  t.notOk(ask() instanceof Promise, 'from memory');
  return { ...service, proxy, client, key, ask, turns };
}

t.test('heartbeats are lost while other events come: after 5 s Latchkey is asked, though it is heard', async (t) => {
  const { admin, proxy, client, ask } = await behindProxy(t);
  const { body: other } = await admin.post('/v1/keys', {});
  proxy.lose('event: heartbeat');
  const lostAtMs = performance.now();
  let renames = 0;
  await eventually(async () => {
    await admin.patch(`/v1/keys/${other.id}`, { name: `Renamed ${renames++}` });
    return !client.isLive();
  }, 8_000);
  const tookMs = performance.now() - lostAtMs;
  t.ok(tookMs < 5_200, `${tookMs} ms`);
  t.ok(renames > 10, 'bytes came all the time');
  t.ok(ask() instanceof Promise);
});

t.test('changes may have been missed while the stream lives on: everything is forgotten', async (t) => {
  const { urls, client, key, turns } = await behindProxy(t);
  // Costs nothing: no limit makes it ask.
  const look = () => client.verify({ key: key.key, permission: 'read', cost: 0 });
  t.notOk(look() instanceof Promise);
  await dbQuery(urls.superuser, "select pg_notify('latchkey_changes', '*')");
  let answer = look();
  await eventually(async () => {
    answer = look();
    return answer instanceof Promise;
  }, 2_000);
  await answer;
  t.same(turns, [[true, undefined]]);
});

t.test('a dead connection without an error is replaced by another', async (t) => {
  const { admin, proxy, client, key, ask, turns } = await behindProxy(t);
  proxy.forsake(stream);
  await admin.delete(`/v1/keys/${key.id}`);
  await eventually(async () => !client.isLive(), 7_000);
  t.equal((await ask()).code, 'deleted');
  await eventually(async () => client.isLive(), 7_000);
  t.match(
    turns.map(([isLive]) => isLive),
    [true, false, true],
  );
});

t.test('a change that arrives late counts only as of the time at which it was written', async (t) => {
  const { admin, proxy, client, key, ask } = await behindProxy(t);
  proxy.lag(9_000, stream);
  const deletedAtMs = performance.now();
  await admin.delete(`/v1/keys/${key.id}`);
  let lastGoodMs = deletedAtMs;
  await eventually(async () => {
    const askedAtMs = performance.now();
    const { code } = await ask();
    if (code === 'valid') lastGoodMs = askedAtMs;
    return askedAtMs - deletedAtMs > 8_900;
  }, 12_000);
  t.ok(lastGoodMs - deletedAtMs < 5_000, `answered for ${lastGoodMs - deletedAtMs} ms`);
  // Heartbeats come again by now, each of them 9 s old.
  await eventually(async () => performance.now() - deletedAtMs > 11_000);
  const { body: next } = await admin.post('/v1/keys', {});
  const askNext = () => client.verify({ key: next.key, permission: 'read' });
  t.equal((await askNext()).code, 'valid');
  t.ok(askNext() instanceof Promise, 'not from memory');
  await admin.post(`/v1/keys/${next.id}/suspend`);
  t.equal((await askNext()).code, 'suspended', 'at once, because it is asked');
  proxy.lag(0);
  await eventually(async () => client.isLive(), 30_000);
});
