import { setTimeout as delay } from 'node:timers/promises';
import { mintToken } from '../src/crypto/token.ts';
import { idSuffix, newId } from '../src/domain/ids.ts';
import { startBackend } from './support/hook.ts';
import { eventually } from './support/process.ts';
import { twoReplicas } from './support/replicas.ts';
import { t } from './support/tap.ts';

// Latchkey is restarted or killed while a backend is used.

t.test('restarts under load never cause a wrong verdict: valid keys are accepted, invalid keys rejected', async (t) => {
  const { replica, start, url } = await twoReplicas(t);
  const { admin } = replica;
  let latchkey = await start();
  await admin.put('/v1/rate-limit', { requests: 100_000_000, windowSeconds: 3_600 });
  const logged: string[] = [];
  const logger = { level: 'info', stream: { write: (line: string) => void logged.push(line) } };
  const options = { url, token: replica.verifier.token, timeoutMs: 1_000 };
  const backend = await startBackend(t, options, undefined, { logger });
  const timesLive = () => logged.filter((line) => line.includes('verified from memory')).length;
  const { body: good } = await admin.post('/v1/keys', {});
  const { body: bad } = await admin.post('/v1/keys', {});
  const unknownKey = mintToken({ prefix: 'lk', kind: 'k', idSuffix: idSuffix(newId('key')) }).reveal();
  for (const key of [good, bad]) await eventually(async () => (await backend.status(key.key)) === 200);
  await admin.delete(`/v1/keys/${bad.id}`);
  await eventually(async () => (await backend.status(bad.key)) === 401, 1_000);

  const seen = {
    good: new Map<number, number>(),
    bad: new Map<number, number>(),
    unknownKey: new Map<number, number>(),
  };
  let isOver = false;
  const load = (
    Object.entries({ good: good.key, bad: bad.key, unknownKey }) as Array<[keyof typeof seen, string]>
  ).flatMap(([name, key]) =>
    Array.from({ length: 3 }, async () => {
      while (!isOver) {
        const status = await backend.status(key);
        seen[name].set(status, (seen[name].get(status) ?? 0) + 1);
        await delay(1);
      }
    }),
  );
  for (const signal of ['SIGTERM', 'SIGKILL'] as const) {
    const before = timesLive();
    latchkey.child.kill(signal);
    await latchkey.exited;
    // The backend must notice that Latchkey is gone.
    await eventually(async () => (await backend.status(unknownKey)) === 503);
    latchkey = await start();
    await eventually(async () => (await backend.status(unknownKey)) === 401);
    // The client clears its cache when the stream connects. The valid key must be known before the next signal.
    await eventually(async () => timesLive() > before);
    t.equal(await backend.status(good.key), 200);
  }
  const { body: last } = await admin.post('/v1/keys', {});
  await eventually(async () => (await backend.status(last.key)) === 200);
  await admin.delete(`/v1/keys/${last.id}`);
  await eventually(async () => (await backend.status(last.key)) === 401, 2_000);
  isOver = true;
  await Promise.all(load);
  const statuses = (counts: Map<number, number>) => [...counts.keys()].sort();
  t.same(statuses(seen.good), [200], 'a known valid key is never rejected');
  t.ok((seen.good.get(200) ?? 0) > 100);
  t.same(statuses(seen.bad), [401, 503], 'an invalid key is never accepted');
  t.same(statuses(seen.unknownKey), [401, 503]);
});
