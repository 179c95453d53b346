import type { Test } from 'tap';
import type { ClientEvent } from '../clients/node/src/client.ts';
import { dbQuery } from './support/database.ts';
import { startClient, startListening } from './support/hook.ts';
import { eventually } from './support/process.ts';
import { proxyTo } from './support/proxy.ts';
import { t } from './support/tap.ts';

const stream = 'GET /v1/changes';

async function behindProxy(t: Test) {
  const service = await startListening(t);
  const proxy = await proxyTo(t, service.url);
  const stateChanges: Array<[isLive: boolean, cause: string]> = [];
  const onEvent = (event: ClientEvent) => {
    if (event.type === 'live') stateChanges.push([true, '']);
    if (event.type === 'not_live') stateChanges.push([false, event.reason]);
  };
  const client = await startClient(t, { url: proxy.url, token: service.verifier.token, onEvent });
  const { body: key } = await service.admin.post('/v1/keys', {});
  const verify = () => client.verify({ key: key.key, permission: 'read' });
  t.equal((await verify()).code, 'valid');
  t.notOk(verify() instanceof Promise, 'from memory');
  return { ...service, proxy, client, key, verify, stateChanges };
}

t.test('if heartbeats are lost while other events arrive, verdicts older than 5 s are not used', async (t) => {
  const { admin, proxy, client, verify } = await behindProxy(t);
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
  t.ok(renames > 10, 'other events arrived all the time');
  t.ok(verify() instanceof Promise);
});

t.test('if changes may have been missed, the whole cache is cleared although the stream continues', async (t) => {
  const { urls, client, key, stateChanges } = await behindProxy(t);
  // Cost 0: the limit never forces a call.
  const verifyWithoutCost = () => client.verify({ key: key.key, permission: 'read', cost: 0 });
  t.notOk(verifyWithoutCost() instanceof Promise);
  await dbQuery(urls.superuser, "select pg_notify('latchkey_changes', '*')");
  let answer = verifyWithoutCost();
  await eventually(async () => {
    answer = verifyWithoutCost();
    return answer instanceof Promise;
  }, 2_000);
  await answer;
  t.same(stateChanges, [[true, '']]);
});

t.test('a connection that is dead without an error is replaced', async (t) => {
  const { admin, proxy, client, key, verify, stateChanges } = await behindProxy(t);
  proxy.swallowOpen(stream);
  await admin.delete(`/v1/keys/${key.id}`);
  await eventually(async () => !client.isLive(), 7_000);
  t.equal((await verify()).code, 'deleted');
  await eventually(async () => client.isLive(), 7_000);
  t.match(
    stateChanges.map(([isLive]) => isLive),
    [true, false, true],
  );
});

t.test('a delayed change is dated by the time at which it was written', async (t) => {
  const { admin, proxy, client, key, verify } = await behindProxy(t);
  proxy.lag(9_000, stream);
  const deletedAtMs = performance.now();
  await admin.delete(`/v1/keys/${key.id}`);
  let lastGoodMs = deletedAtMs;
  await eventually(async () => {
    const askedAtMs = performance.now();
    const { code } = await verify();
    if (code === 'valid') lastGoodMs = askedAtMs;
    return askedAtMs - deletedAtMs > 8_900;
  }, 12_000);
  t.ok(lastGoodMs - deletedAtMs < 5_000, `answered for ${lastGoodMs - deletedAtMs} ms`);
  // Heartbeats arrive again, each 9 s late.
  await eventually(async () => performance.now() - deletedAtMs > 11_000);
  const { body: next } = await admin.post('/v1/keys', {});
  const verifyNext = () => client.verify({ key: next.key, permission: 'read' });
  t.equal((await verifyNext()).code, 'valid');
  t.ok(verifyNext() instanceof Promise, 'the verdict does not come from memory');
  await admin.post(`/v1/keys/${next.id}/suspend`);
  t.equal((await verifyNext()).code, 'suspended', 'immediately, because each call goes to Latchkey');
  proxy.lag(0);
  await eventually(async () => client.isLive(), 30_000);
});
