import { createBatchLoader } from '../src/lib/batch-loader.ts';
import { createDeferred, type Deferred } from '../src/lib/deferred.ts';
import { eventually } from './support/process.ts';
import { t } from './support/tap.ts';

// Many loads in few queries. One id that is at fault does not fail the others, and a silent source is waited for once.

interface Query {
  ids: string[];
  answer: Deferred<Map<string, string>>;
}

class Lost extends Error {
  override readonly message = 'the connection was lost';
}

const isLost = { message: 'the connection was lost' };

function start() {
  const queries: Query[] = [];
  /** How often it was asked whether the source answers, and what that gives. */
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
    isUnavailable: (error) => error instanceof Lost,
    tooLate: () => new Error('it has waited for too long'),
    onHealth: (isHealthy) => void health.push(isHealthy),
  });
  const begun = async (count: number): Promise<Query> => {
    await eventually(async () => queries.length >= count, 12_000);
    return queries[count - 1] as Query;
  };
  return { loader, queries, pings, health, begun };
}

const valuesOf = (ids: string[]) => new Map(ids.map((id) => [id, `value of ${id}`]));

t.test('two queries at once, with up to 200 ids each; the others wait', async (t) => {
  const { loader, queries, begun } = start();
  const ids = Array.from({ length: 450 }, (_, index) => `id ${index}`);
  const loaded = Promise.all(ids.map((id) => loader.load(id)));
  const second = await begun(2);
  const lengths = () => queries.map((query) => query.ids.length);
  t.same(lengths(), [200, 200]);
  second.answer.resolve(valuesOf(second.ids));
  const third = await begun(3);
  t.same(lengths(), [200, 200, 50]);
  third.answer.resolve(valuesOf(third.ids.slice(1)));
  queries[0]?.answer.resolve(valuesOf(queries[0].ids));
  const values = await loaded;
  t.equal(values[0], 'value of id 0');
  t.equal(values[400], undefined, 'one that is left out does not exist');
  t.equal(values[449], 'value of id 449');
  t.equal(loader.isIdle(), true);
});

t.test('a query that loses its connection is sent once more, and only once', async (t) => {
  const { loader, begun, health } = start();
  const loaded = loader.load('a');
  (await begun(1)).answer.reject(new Lost());
  (await begun(2)).answer.resolve(valuesOf(['a']));
  t.equal(await loaded, 'value of a');
  t.same(health, []);
  const failed = loader.load('a');
  (await begun(3)).answer.reject(new Lost());
  (await begun(4)).answer.reject(new Lost());
  await t.rejects(failed, isLost);
  t.same(health, [false]);
  t.equal(loader.isFailing(), true);
});

t.test('if the source does not respond, waiting calls are rejected with the running ones', async (t) => {
  const { loader, begun, queries, pings, health } = start();
  const asked = loader.load('a');
  const first = await begun(1);
  const alsoAsked = loader.load('b');
  await begun(2);
  const waits = loader.load('c');
  await eventually(async () => pings.count === 2);
  first.answer.reject(new Lost());
  await Promise.all([t.rejects(asked, isLost), t.rejects(waits, isLost)]);
  t.equal(queries.length, 2, 'no query was sent for the one that waited');
  t.same(health, [false]);
  queries[1]?.answer.resolve(valuesOf(['b']));
  t.equal(await alsoAsked, 'value of b');
  t.same(health, [false, true]);
});

t.test('a query that is too much for a source that answers: its ids are loaded one by one', async (t) => {
  const { loader, begun, pings, health } = start();
  const loaded = Promise.allSettled(['a', 'b', 'c'].map((id) => loader.load(id)));
  const first = await begun(1);
  await eventually(async () => pings.count === 1);
  pings.answer.resolve();
  await new Promise((resolve) => setImmediate(resolve));
  first.answer.reject(new Lost());
  for (const [count, id] of [
    [2, 'a'],
    [3, 'b'],
    [4, 'c'],
  ] as const) {
    const query = await begun(count);
    t.same(query.ids, [id]);
    if (id === 'b') query.answer.reject(new Error('it is broken'));
    else query.answer.resolve(valuesOf([id]));
  }
  t.match(await loaded, [
    { status: 'fulfilled', value: 'value of a' },
    { status: 'rejected', reason: /it is broken/ },
    { status: 'fulfilled', value: 'value of c' },
  ]);
  t.same(health, [], 'the source is well');

  const others = Promise.all([loader.load('a'), loader.load('c')]);
  const broken = loader.load('b');
  const together = await begun(5);
  t.same(together.ids, ['a', 'c'], 'what has failed is not in the batch of others');
  t.same((await begun(6)).ids, ['b']);
  together.answer.resolve(valuesOf(together.ids));
  await others;
  const later = loader.load('d');
  const seventh = await begun(7);
  seventh.answer.resolve(valuesOf(['d']));
  t.equal(await later, 'value of d', 'and nobody waits for it');
  (await begun(6)).answer.resolve(valuesOf(['b']));
  t.equal(await broken, 'value of b');

  const again = Promise.all([loader.load('a'), loader.load('b')]);
  const eighth = await begun(8);
  t.same(eighth.ids, ['a', 'b'], 'once it was loaded it is like all others');
  eighth.answer.resolve(valuesOf(eighth.ids));
  await again;
});

t.test('who has waited for seven seconds is rejected, and asked for no more', async (t) => {
  const { loader, begun, queries } = start();
  const slow = [loader.load('a')];
  const first = await begun(1);
  slow.push(loader.load('b'));
  const second = await begun(2);
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
