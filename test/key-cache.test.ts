import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import type { ChangeListener } from '../src/database/change-feed.ts';
import { createDeferred, type Deferred } from '../src/lib/deferred.ts';
import { KeyCache } from '../src/verification/key-cache.ts';
import { eventually } from './support/process.ts';
import { t } from './support/tap.ts';

// Tests what the cache of records keeps and when it reads again. The test answers the queries of a simulated database.

type NoteId = `note_${string}`;

interface Note {
  id: NoteId;
  partnerId: string | null;
  readAtMs: number;
  text: string;
}

interface Query {
  ids: NoteId[];
  answer: Deferred<Note[]>;
}

/** An error that isUnavailable recognizes as an unreachable database. */
const unreachable = () => Object.assign(new Error('connect ECONNREFUSED'), { code: 'ECONNREFUSED' });

function start({ staleMs = 0, capacity = 100 } = {}) {
  const queries: Query[] = [];
  const feed = { isLive: true, caughtUpAtMs: Number.NEGATIVE_INFINITY };
  let listener: ChangeListener | undefined;
  const health: boolean[] = [];
  const cache = new KeyCache<NoteId, Note>({
    load(ids) {
      const answer = createDeferred<Note[]>();
      queries.push({ ids, answer });
      return answer.promise;
    },
    dependsOn: ({ partnerId }) => [partnerId],
    capacity,
    staleMs,
    feed: {
      isLive: () => feed.isLive,
      get caughtUpAtMs() {
        return feed.caughtUpAtMs;
      },
      subscribe: (onChange) => {
        listener = onChange;
      },
    },
    onHealth: (isHealthy) => void health.push(isHealthy),
  });
  const nthQuery = async (count: number): Promise<Query> => {
    await eventually(async () => queries.length >= count, 3_000);
    return queries[count - 1] as Query;
  };
  const note = (id: NoteId, text: string, partnerId: string | null = 'partner_a'): Note => ({
    id,
    partnerId,
    readAtMs: performance.now(),
    text,
  });
  /** Reads a note with this text, so that it is cached. */
  const cacheNote = async (id: NoteId, text: string) => {
    const count = queries.length + 1;
    const read = cache.get(id, true);
    (await nthQuery(count)).answer.resolve([note(id, text)]);
    return read;
  };
  return {
    cache,
    queries,
    feed,
    health,
    nthQuery,
    note,
    cacheNote,
    changed: (id: string) => listener?.changed(id, null),
    restarted: () => listener?.restarted(),
  };
}

t.test('a record that was read is cached and returned synchronously', async (t) => {
  const { cache, queries, cacheNote } = start();
  t.match(await cacheNote('note_1', 'first'), { text: 'first' });
  const found = cache.get('note_1');
  t.notOk(found instanceof Promise);
  t.match(found, { text: 'first' });
  t.match(cache.getFromMemory('note_1'), { text: 'first' });
  t.equal(queries.length, 1);
  t.same(cache.lookups, { hit: 2, miss: 1, unknown: 0, stale: 0 });
});

for (const [what, invalidate] of [
  ['the record was changed', ({ changed }) => changed('note_1')],
  ['its partner was changed', ({ changed }) => changed('partner_a')],
  ['changes may have been missed', ({ restarted }) => restarted()],
  ['this process has changed it', ({ cache }) => cache.invalidate('note_1')],
] as Array<[string, (of: ReturnType<typeof start>) => void]>) {
  t.test(`${what} while a record is read: it is read once more, and the first result is not cached`, async (t) => {
    const started = start();
    const { cache, nthQuery, note, queries } = started;
    const read = cache.get('note_1');
    const first = await nthQuery(1);
    invalidate(started);
    first.answer.resolve([note('note_1', 'of before')]);
    const second = await nthQuery(2);
    t.equal(cache.size, 0);
    second.answer.resolve([note('note_1', 'of now')]);
    t.match(await read, { text: 'of now' });
    t.match(cache.getFromMemory('note_1'), { text: 'of now' });
    t.equal(queries.length, 2);
  });

  t.test(`${what} repeatedly while a record is read: the second result is returned, and not cached`, async (t) => {
    const started = start();
    const { cache, nthQuery, note, queries } = started;
    const read = cache.get('note_1');
    for (const count of [1, 2]) {
      const query = await nthQuery(count);
      invalidate(started);
      query.answer.resolve([note('note_1', `reading ${count}`)]);
    }
    t.match(await read, { text: 'reading 2' });
    t.equal(cache.size, 0);
    t.equal(queries.length, 2);
  });

  t.test(`${what}: the cached record is not used`, async (t) => {
    const started = start({ staleMs: 60_000 });
    const { cache, nthQuery, cacheNote, note } = started;
    await cacheNote('note_1', 'of before');
    invalidate(started);
    t.equal(cache.getFromMemory('note_1'), undefined);
    const read = cache.get('note_1');
    (await nthQuery(2)).answer.resolve([note('note_1', 'of now')]);
    t.match(await read, { text: 'of now' });
  });
}

t.test('a change of another record or partner leaves the cached record', async (t) => {
  const { cache, nthQuery, note, changed, queries } = start();
  const read = cache.get('note_1');
  const first = await nthQuery(1);
  changed('note_2');
  changed('partner_b');
  first.answer.resolve([note('note_1', 'first')]);
  await read;
  changed('note_2');
  changed('partner_b');
  t.match(cache.get('note_1'), { text: 'first' });
  t.equal(queries.length, 1);
});

t.test('an older query that ends after a newer one does not restore an invalidated record', async (t) => {
  const { cache, nthQuery, note, changed } = start();
  const firstRead = cache.get('note_1');
  const first = await nthQuery(1);
  changed('note_1');
  const secondRead = cache.get('note_1');
  const second = await nthQuery(2);
  second.answer.resolve([note('note_1', 'of now')]);
  await secondRead;
  first.answer.resolve([note('note_1', 'of before')]);
  (await nthQuery(3)).answer.resolve([note('note_1', 'of now')]);
  t.match(await firstRead, { text: 'of now' });
  t.match(cache.get('note_1'), { text: 'of now' });
});

t.test('concurrent requests for a record share one query', async (t) => {
  const { cache, nthQuery, note, queries } = start();
  const firstRead = [cache.get('note_1'), cache.get('note_2')];
  const first = await nthQuery(1);
  t.same(first.ids, ['note_1', 'note_2']);
  const secondRead = [cache.get('note_1'), cache.get('note_2')];
  first.answer.resolve([note('note_1', 'first'), note('note_2', 'first')]);
  t.match(await Promise.all([...firstRead, ...secondRead]), Array(4).fill({ text: 'first' }));
  t.equal(queries.length, 1);
});

for (const [what, happen] of [
  ['must be fresh', () => undefined],
  ['comes while the feed is not live', ({ feed }) => void Object.assign(feed, { isLive: false })],
  ['comes after a change of anything', ({ changed }) => changed('partner_z')],
  ['comes after changes that may have been missed', ({ restarted }) => restarted()],
] as Array<[string, (of: ReturnType<typeof start>) => void]>) {
  t.test(`a request that ${what} does not join an earlier query`, async (t) => {
    const started = start();
    const { cache, nthQuery, note } = started;
    const firstRead = cache.get('note_1');
    const first = await nthQuery(1);
    happen(started);
    const secondRead = cache.get('note_1', what === 'must be fresh');
    const second = await nthQuery(2);
    second.answer.resolve([note('note_1', 'second')]);
    t.match(await secondRead, { text: 'second' });
    first.answer.resolve([note('note_1', 'first')]);
    if (what === 'comes after changes that may have been missed') (await nthQuery(3)).answer.resolve([]);
    await firstRead;
  });
}

t.test('while the feed is not live each request reads, also for a missing record', async (t) => {
  const { cache, feed, nthQuery, cacheNote, note } = start({ staleMs: 60_000 });
  await cacheNote('note_1', 'of before');
  const missing = cache.get('note_2');
  (await nthQuery(2)).answer.resolve([]);
  t.equal(await missing, undefined);
  t.equal(cache.get('note_2'), undefined, 'known not to exist');
  feed.isLive = false;
  t.equal(cache.getFromMemory('note_1'), undefined);
  const reads = [cache.get('note_1'), cache.get('note_2')];
  (await nthQuery(3)).answer.resolve([note('note_1', 'of now'), note('note_2', 'of now')]);
  t.match(await Promise.all(reads), [{ text: 'of now' }, { text: 'of now' }]);
});

t.test('the absence of a record is cached until the record is created', async (t) => {
  const { cache, nthQuery, note, changed, queries } = start();
  const missing = cache.get('note_1');
  (await nthQuery(1)).answer.resolve([]);
  t.equal(await missing, undefined);
  t.notOk(cache.get('note_1') instanceof Promise);
  t.match(cache.lookups, { unknown: 1 });
  changed('note_1');
  const created = cache.get('note_1');
  (await nthQuery(2)).answer.resolve([note('note_1', 'made')]);
  t.match(await created, { text: 'made' });
  t.equal(queries.length, 2);

  const race = cache.get('note_2');
  const third = await nthQuery(3);
  changed('note_2');
  third.answer.resolve([]);
  (await nthQuery(4)).answer.resolve([note('note_2', 'made')]);
  t.match(await race, { text: 'made' }, 'it was created during the query');
});

t.test('a record that is missing when read again is removed from the cache', async (t) => {
  const { cache, nthQuery, cacheNote } = start();
  await cacheNote('note_1', 'first');
  const read = cache.get('note_1', true);
  (await nthQuery(2)).answer.resolve([]);
  t.equal(await read, undefined);
  t.equal(cache.getFromMemory('note_1'), undefined);
});

/** Rejects every query until stopped. */
function failAll(queries: Query[]) {
  let failed = queries.length;
  const timer = setInterval(() => {
    for (; failed < queries.length; failed++) queries[failed]?.answer.reject(unreachable());
  }, 1);
  return () => clearInterval(timer);
}

t.test('while the database fails, a recently confirmed record is used', async (t) => {
  const { cache, feed, queries, cacheNote, health, nthQuery, note } = start({ staleMs: 400 });
  await cacheNote('note_1', 'first');
  feed.isLive = false;
  feed.caughtUpAtMs = performance.now();
  const stop = failAll(queries);
  t.match(await cache.get('note_1'), { text: 'first' }, 'after its query has failed');
  t.same(health, [false]);
  t.notOk(cache.get('note_1') instanceof Promise, 'then synchronously');
  await t.rejects(
    Promise.resolve(cache.get('note_2')),
    { code: 'ECONNREFUSED' },
    'an unknown record is never returned',
  );
  await t.rejects(
    Promise.resolve(cache.get('note_1', true)),
    { code: 'ECONNREFUSED' },
    'a request for a fresh record fails',
  );
  await eventually(async () => performance.now() - feed.caughtUpAtMs > 400);
  await t.rejects(
    Promise.resolve(cache.get('note_1')),
    { code: 'ECONNREFUSED' },
    'the record is not used for longer than staleMs',
  );
  feed.caughtUpAtMs = performance.now();
  stop();
  await eventually(async () => queries.length > 0 && cache.get('note_1') !== undefined);
  const count = queries.length;
  for (const { answer } of queries) answer.resolve([]);
  const read = cache.get('note_3', true);
  (await nthQuery(count + 1)).answer.resolve([note('note_3', 'third')]);
  t.match(await read, { text: 'third' });
  t.same(health, [false, true]);
});

t.test('a record that was revoked while the database fails is not used', async (t) => {
  const { cache, feed, queries, cacheNote, nthQuery } = start({ staleMs: 60_000 });
  await cacheNote('note_1', 'of before');
  feed.isLive = false;
  const read = cache.get('note_1');
  await nthQuery(2);
  cache.invalidate('note_1');
  const stop = failAll(queries);
  queries[1]?.answer.reject(unreachable());
  await t.rejects(Promise.resolve(read), { code: 'ECONNREFUSED' });
  await t.rejects(Promise.resolve(cache.get('note_1')), { code: 'ECONNREFUSED' }, 'later calls do not use it either');
  stop();
});

t.test('an error other than an unreachable database is not hidden by the cache', async (t) => {
  const { cache, feed, cacheNote, nthQuery } = start({ staleMs: 60_000 });
  await cacheNote('note_1', 'first');
  feed.isLive = false;
  const read = cache.get('note_1');
  (await nthQuery(2)).answer.reject(new Error('a row that cannot be read'));
  await t.rejects(Promise.resolve(read), /cannot be read/);
});

t.test('while the database fails, one read at a time checks whether it is back', async (t) => {
  const { cache, feed, queries, cacheNote, nthQuery } = start({ staleMs: 60_000 });
  await cacheNote('note_1', 'first');
  await cacheNote('note_2', 'second');
  feed.isLive = false;
  const stop = failAll(queries);
  await cache.get('note_1');
  stop();
  const before = queries.length;
  for (let call = 0; call < 50; call++) t.match(cache.get(call % 2 === 0 ? 'note_1' : 'note_2'), {});
  await nthQuery(before + 1);
  for (let call = 0; call < 50; call++) cache.get('note_1');
  await new Promise((resolve) => setTimeout(resolve, 20));
  t.equal(queries.length, before + 1);
});

t.test('the least recently used record is evicted', async (t) => {
  const { cache, cacheNote } = start({ capacity: 3 });
  for (const id of ['note_1', 'note_2', 'note_3'] as const) await cacheNote(id, id);
  cache.get('note_1');
  await cacheNote('note_4', 'fourth');
  t.equal(cache.size, 3);
  t.equal(cache.getFromMemory('note_2'), undefined);
  t.ok(cache.getFromMemory('note_1'));
});

t.test('evicted records leave no memory behind, however many there were', async (t) => {
  setFlagsFromString('--expose-gc');
  const collect = runInNewContext('gc') as () => void;
  const cache = new KeyCache<NoteId, Note>({
    load: async (ids) => ids.map((id) => ({ id, partnerId: `partner_of_${id}`, readAtMs: 0, text: 'x'.repeat(100) })),
    dependsOn: ({ partnerId }) => [partnerId],
    capacity: 100,
    staleMs: 0,
    feed: { isLive: () => true, caughtUpAtMs: 0, subscribe: () => undefined },
  });
  let number = 0;
  const fill = async () => {
    for (let round = 0; round < 100; round++) {
      await Promise.all(Array.from({ length: 200 }, () => cache.get(`note_${number++}`)));
    }
    collect();
    return process.memoryUsage().heapUsed;
  };
  await fill();
  const beforeBytes = await fill();
  await fill();
  const grownBytes = (await fill()) - beforeBytes;
  t.equal(cache.size, 100);
  t.ok(grownBytes < 2_000_000, `${Math.round(grownBytes / 1_000)} KB more after 40,000 others`);
});
