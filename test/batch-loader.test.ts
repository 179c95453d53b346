import { createBatchLoader } from '../src/lib/batch-loader.ts';
import { createDeferred, type Deferred } from '../src/lib/deferred.ts';
import { eventually } from './support/process.ts';
import { t } from './support/tap.ts';

// Many loads share few queries. One bad id does not fail the others, and calls do not wait twice for a silent source.

interface Query {
  ids: string[];
  answer: Deferred<Map<string, string>>;
}

class ConnectionLost extends Error {
  override readonly message = 'the connection was lost';
}

const connectionLost = { message: 'the connection was lost' };

function start() {
  const queries: Query[] = [];
  /** How often the loader checked whether the source answers, and the result of that check. */
  const pings = { count: 0, answer: createDeferred() };
  const health: boolean[] = [];
  const loader = createBatchLoader<string, string>({
    async query(ids) {
      if (ids.length === 0) {
        pings.count += 1;
        await pings.answer.promise;
        return new Map();
      }
      const answer = createDeferred<Map<string, string>>();
      queries.push({ ids, answer });
      return answer.promise;
    },
    isUnavailable: (error) => error instanceof ConnectionLost,
    tooLate: () => new Error('it has waited for too long'),
    onHealth: (isHealthy) => void health.push(isHealthy),
  });
  const nthQuery = async (count: number): Promise<Query> => {
    await eventually(async () => queries.length >= count, 12_000);
    return queries[count - 1] as Query;
  };
  return { loader, queries, pings, health, nthQuery };
}

const valuesOf = (ids: string[]) => new Map(ids.map((id) => [id, `value of ${id}`]));

t.test('at most two queries run at once, with up to 200 ids each; the other ids wait', async (t) => {
  const { loader, queries, nthQuery } = start();
  const ids = Array.from({ length: 450 }, (_, index) => `id ${index}`);
  const loaded = Promise.all(ids.map((id) => loader.load(id)));
  const second = await nthQuery(2);
  const lengths = () => queries.map((query) => query.ids.length);
  t.same(lengths(), [200, 200]);
  second.answer.resolve(valuesOf(second.ids));
  const third = await nthQuery(3);
  t.same(lengths(), [200, 200, 50]);
  third.answer.resolve(valuesOf(third.ids.slice(1)));
  queries[0]?.answer.resolve(valuesOf(queries[0].ids));
  const values = await loaded;
  t.equal(values[0], 'value of id 0');
  t.equal(values[400], undefined, 'an id that the query leaves out does not exist');
  t.equal(values[449], 'value of id 449');
  t.equal(loader.isIdle(), true);
});

t.test('a query that loses its connection is repeated once', async (t) => {
  const { loader, nthQuery, health } = start();
  const loaded = loader.load('a');
  (await nthQuery(1)).answer.reject(new ConnectionLost());
  (await nthQuery(2)).answer.resolve(valuesOf(['a']));
  t.equal(await loaded, 'value of a');
  t.same(health, []);
  const failed = loader.load('a');
  (await nthQuery(3)).answer.reject(new ConnectionLost());
  (await nthQuery(4)).answer.reject(new ConnectionLost());
  await t.rejects(failed, connectionLost);
  t.same(health, [false]);
  t.equal(loader.isFailing(), true);
});

t.test('if the source does not respond, waiting calls are rejected with the running ones', async (t) => {
  const { loader, nthQuery, queries, pings, health } = start();
  const loadedA = loader.load('a');
  const first = await nthQuery(1);
  const loadedB = loader.load('b');
  await nthQuery(2);
  const waits = loader.load('c');
  await eventually(async () => pings.count === 2);
  first.answer.reject(new ConnectionLost());
  await Promise.all([t.rejects(loadedA, connectionLost), t.rejects(waits, connectionLost)]);
  t.equal(queries.length, 2, 'no query was sent for the waiting call');
  t.same(health, [false]);
  queries[1]?.answer.resolve(valuesOf(['b']));
  t.equal(await loadedB, 'value of b');
  t.same(health, [false, true]);
});

t.test('if a query fails although the source answers, its ids are loaded one by one', async (t) => {
  const { loader, nthQuery, pings, health } = start();
  const loaded = Promise.allSettled(['a', 'b', 'c'].map((id) => loader.load(id)));
  const first = await nthQuery(1);
  await eventually(async () => pings.count === 1);
  pings.answer.resolve();
  await new Promise((resolve) => setImmediate(resolve));
  first.answer.reject(new ConnectionLost());
  for (const [count, id] of [
    [2, 'a'],
    [3, 'b'],
    [4, 'c'],
  ] as const) {
    const query = await nthQuery(count);
    t.same(query.ids, [id]);
    if (id === 'b') query.answer.reject(new Error('it is broken'));
    else query.answer.resolve(valuesOf([id]));
  }
  t.match(await loaded, [
    { status: 'fulfilled', value: 'value of a' },
    { status: 'rejected', reason: /it is broken/ },
    { status: 'fulfilled', value: 'value of c' },
  ]);
  t.same(health, [], 'the source is healthy');

  const others = Promise.all([loader.load('a'), loader.load('c')]);
  const broken = loader.load('b');
  const batch = await nthQuery(5);
  t.same(batch.ids, ['a', 'c'], 'the failed id is not in the batch of the others');
  t.same((await nthQuery(6)).ids, ['b']);
  batch.answer.resolve(valuesOf(batch.ids));
  await others;
  const later = loader.load('d');
  const seventh = await nthQuery(7);
  seventh.answer.resolve(valuesOf(['d']));
  t.equal(await later, 'value of d', 'the other ids do not wait for it');
  (await nthQuery(6)).answer.resolve(valuesOf(['b']));
  t.equal(await broken, 'value of b');

  const again = Promise.all([loader.load('a'), loader.load('b')]);
  const eighth = await nthQuery(8);
  t.same(eighth.ids, ['a', 'b'], 'after a successful load the id is batched again');
  eighth.answer.resolve(valuesOf(eighth.ids));
  await again;
});

t.test('a call that has waited for seven seconds is rejected, and its query is not sent', async (t) => {
  const { loader, nthQuery, queries } = start();
  const slow = [loader.load('a')];
  const first = await nthQuery(1);
  slow.push(loader.load('b'));
  const second = await nthQuery(2);
  const waits = loader.load('c');
  const startedAtMs = performance.now();
  let isRejected = false;
  waits.catch(() => {
    isRejected = true;
  });
  await eventually(async () => performance.now() - startedAtMs > 7_100, 12_000);
  t.equal(isRejected, false);
  first.answer.resolve(valuesOf(['a']));
  await t.rejects(waits, /waited for too long/);
  second.answer.resolve(valuesOf(['b']));
  await Promise.all(slow);
  t.equal(queries.length, 2);
});
