import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import type { ChangeListener } from '../src/database/change-feed.ts';
import { createDeferred, type Deferred } from '../src/lib/deferred.ts';
import { KeyCache } from '../src/verification/key-cache.ts';
import { eventually } from './support/process.ts';
import { t } from './support/tap.ts';

// What is kept of records, and when it is not used. The database is a list of queries that the test answers.

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

/** What isUnavailable takes for a database that cannot be reached. */
const lost = () => Object.assign(new Error('connect ECONNREFUSED'), { code: 'ECONNREFUSED' });

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
      subscribe: (given) => {
        listener = given;
      },
    },
    onHealth: (isHealthy) => void health.push(isHealthy),
  });
  const begun = async (count: number): Promise<Query> => {
    await eventually(async () => queries.length >= count, 3_000);
    return queries[count - 1] as Query;
  };
  const note = (id: NoteId, text: string, partnerId: string | null = 'partner_a'): Note => ({
    id,
    partnerId,
    readAtMs: performance.now(),
    text,
  });
  /** Reads a note that has this text, so that it is in memory. */
  const learn = async (id: NoteId, text: string) => {
    const count = queries.length + 1;
    const read = cache.get(id, true);
    (await begun(count)).answer.resolve([note(id, text)]);
    return read;
  };
  return {
    cache,
    queries,
    feed,
    health,
    begun,
    note,
    learn,
    changed: (id: string) => listener?.changed(id, null),
    restarted: () => listener?.restarted(),
  };
}

t.test('what was read is in memory, and found there at once', async (t) => {
  const { cache, queries, learn } = start();
  t.match(await learn('note_1', 'first'), { text: 'first' });
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
  t.test(`${what} while it was read: it is read once more, and what was read first is not kept`, async (t) => {
    const started = start();
    const { cache, begun, note, queries } = started;
    const read = cache.get('note_1');
    const first = await begun(1);
    invalidate(started);
    first.answer.resolve([note('note_1', 'of before')]);
    const second = await begun(2);
    t.equal(cache.size, 0);
    second.answer.resolve([note('note_1', 'of now')]);
    t.match(await read, { text: 'of now' });
    t.match(cache.getFromMemory('note_1'), { text: 'of now' });
    t.equal(queries.length, 2);
  });

  t.test(`${what} again and again while it is read: the second reading is the answer, and not kept`, async (t) => {
    const started = start();
    const { cache, begun, note, queries } = started;
    const read = cache.get('note_1');
    for (const count of [1, 2]) {
      const query = await begun(count);
      invalidate(started);
      query.answer.resolve([note('note_1', `reading ${count}`)]);
    }
    t.match(await read, { text: 'reading 2' });
    t.equal(cache.size, 0);
    t.equal(queries.length, 2);
  });

  t.test(`${what}: what is in memory is not used`, async (t) => {
    const started = start({ staleMs: 60_000 });
    const { cache, begun, learn, note } = started;
    await learn('note_1', 'of before');
    invalidate(started);
    t.equal(cache.getFromMemory('note_1'), undefined);
    const read = cache.get('note_1');
    (await begun(2)).answer.resolve([note('note_1', 'of now')]);
    t.match(await read, { text: 'of now' });
  });
}

t.test('a change of another record, or of another partner, leaves what was read in memory', async (t) => {
  const { cache, begun, note, changed, queries } = start();
  const read = cache.get('note_1');
  const first = await begun(1);
  changed('note_2');
  changed('partner_b');
  first.answer.resolve([note('note_1', 'first')]);
  await read;
  changed('note_2');
  changed('partner_b');
  t.match(cache.get('note_1'), { text: 'first' });
  t.equal(queries.length, 1);
});

t.test('an older query that ends after a newer one does not bring back what was invalidated', async (t) => {
  const { cache, begun, note, changed } = start();
  const early = cache.get('note_1');
  const first = await begun(1);
  changed('note_1');
  const late = cache.get('note_1');
  const second = await begun(2);
  second.answer.resolve([note('note_1', 'of now')]);
  await late;
  first.answer.resolve([note('note_1', 'of before')]);
  (await begun(3)).answer.resolve([note('note_1', 'of now')]);
  t.match(await early, { text: 'of now' });
  t.match(cache.get('note_1'), { text: 'of now' });
});

t.test('many who ask for a record while it is read share one query', async (t) => {
  const { cache, begun, note, queries } = start();
  const early = [cache.get('note_1'), cache.get('note_2')];
  const first = await begun(1);
  t.same(first.ids, ['note_1', 'note_2']);
  const late = [cache.get('note_1'), cache.get('note_2')];
  first.answer.resolve([note('note_1', 'first'), note('note_2', 'first')]);
  t.match(await Promise.all([...early, ...late]), Array(4).fill({ text: 'first' }));
  t.equal(queries.length, 1);
});

for (const [what, happen] of [
  ['must be fresh', () => undefined],
  ['comes while the feed is not live', ({ feed }) => void Object.assign(feed, { isLive: false })],
  ['comes after a change of anything', ({ changed }) => changed('partner_z')],
  ['comes after changes that may have been missed', ({ restarted }) => restarted()],
] as Array<[string, (of: ReturnType<typeof start>) => void]>) {
  t.test(`a request that ${what} does not join a query that began before it`, async (t) => {
    const started = start();
    const { cache, begun, note } = started;
    const early = cache.get('note_1');
    const first = await begun(1);
    happen(started);
    const late = cache.get('note_1', what === 'must be fresh');
    const second = await begun(2);
    second.answer.resolve([note('note_1', 'second')]);
    t.match(await late, { text: 'second' });
    first.answer.resolve([note('note_1', 'first')]);
    if (what === 'comes after changes that may have been missed') (await begun(3)).answer.resolve([]);
    await early;
  });
}

t.test('while the feed is not live each request reads, also what does not exist', async (t) => {
  const { cache, feed, begun, learn, note } = start({ staleMs: 60_000 });
  await learn('note_1', 'of before');
  const missing = cache.get('note_2');
  (await begun(2)).answer.resolve([]);
  t.equal(await missing, undefined);
  t.equal(cache.get('note_2'), undefined, 'known not to exist');
  feed.isLive = false;
  t.equal(cache.getFromMemory('note_1'), undefined);
  const reads = [cache.get('note_1'), cache.get('note_2')];
  (await begun(3)).answer.resolve([note('note_1', 'of now'), note('note_2', 'of now')]);
  t.match(await Promise.all(reads), [{ text: 'of now' }, { text: 'of now' }]);
});

t.test('what does not exist is remembered until it is made', async (t) => {
  const { cache, begun, note, changed, queries } = start();
  const missing = cache.get('note_1');
  (await begun(1)).answer.resolve([]);
  t.equal(await missing, undefined);
  t.notOk(cache.get('note_1') instanceof Promise);
  t.match(cache.lookups, { unknown: 1 });
  changed('note_1');
  const made = cache.get('note_1');
  (await begun(2)).answer.resolve([note('note_1', 'made')]);
  t.match(await made, { text: 'made' });
  t.equal(queries.length, 2);

  const race = cache.get('note_2');
  const third = await begun(3);
  changed('note_2');
  third.answer.resolve([]);
  (await begun(4)).answer.resolve([note('note_2', 'made')]);
  t.match(await race, { text: 'made' }, 'it was made while it was looked for');
});

t.test('what is gone when it is read again is not in memory any more', async (t) => {
  const { cache, begun, learn } = start();
  await learn('note_1', 'first');
  const read = cache.get('note_1', true);
  (await begun(2)).answer.resolve([]);
  t.equal(await read, undefined);
  t.equal(cache.getFromMemory('note_1'), undefined);
});

/** Fails every query that is sent, until it is stopped. */
function failAll(queries: Query[]) {
  let failed = queries.length;
  const timer = setInterval(() => {
    for (; failed < queries.length; failed++) queries[failed]?.answer.reject(lost());
  }, 1);
  return () => clearInterval(timer);
}

t.test('without the database a record is used that was known to be right not long ago', async (t) => {
  const { cache, feed, queries, learn, health, begun, note } = start({ staleMs: 400 });
  await learn('note_1', 'first');
  feed.isLive = false;
  feed.caughtUpAtMs = performance.now();
  const stop = failAll(queries);
  t.match(await cache.get('note_1'), { text: 'first' }, 'after its read has failed');
  t.same(health, [false]);
  t.notOk(cache.get('note_1') instanceof Promise, 'then at once');
  await t.rejects(Promise.resolve(cache.get('note_2')), { code: 'ECONNREFUSED' }, 'never one that was not known');
  await t.rejects(Promise.resolve(cache.get('note_1', true)), { code: 'ECONNREFUSED' }, 'nor one that must be read');
  await eventually(async () => performance.now() - feed.caughtUpAtMs > 400);
  await t.rejects(Promise.resolve(cache.get('note_1')), { code: 'ECONNREFUSED' }, 'nor for longer than staleMs');
  feed.caughtUpAtMs = performance.now();
  stop();
  await eventually(async () => queries.length > 0 && cache.get('note_1') !== undefined);
  const count = queries.length;
  for (const { answer } of queries) answer.resolve([]);
  const read = cache.get('note_3', true);
  (await begun(count + 1)).answer.resolve([note('note_3', 'third')]);
  t.match(await read, { text: 'third' });
  t.same(health, [false, true]);
});

t.test('a record that was revoked while the database fails is not used', async (t) => {
  const { cache, feed, queries, learn, begun } = start({ staleMs: 60_000 });
  await learn('note_1', 'of before');
  feed.isLive = false;
  const read = cache.get('note_1');
  await begun(2);
  cache.invalidate('note_1');
  const stop = failAll(queries);
  queries[1]?.answer.reject(lost());
  await t.rejects(Promise.resolve(read), { code: 'ECONNREFUSED' });
  await t.rejects(Promise.resolve(cache.get('note_1')), { code: 'ECONNREFUSED' }, 'nor by later calls');
  stop();
});

t.test('an error that is not about reaching the database is not hidden by what is in memory', async (t) => {
  const { cache, feed, learn, begun } = start({ staleMs: 60_000 });
  await learn('note_1', 'first');
  feed.isLive = false;
  const read = cache.get('note_1');
  (await begun(2)).answer.reject(new Error('a row that cannot be read'));
  await t.rejects(Promise.resolve(read), /cannot be read/);
});

t.test('while the database fails, one read at a time asks whether it is back', async (t) => {
  const { cache, feed, queries, learn, begun } = start({ staleMs: 60_000 });
  await learn('note_1', 'first');
  await learn('note_2', 'second');
  feed.isLive = false;
  const stop = failAll(queries);
  await cache.get('note_1');
  stop();
  const before = queries.length;
  for (let turn = 0; turn < 50; turn++) t.match(cache.get(turn % 2 === 0 ? 'note_1' : 'note_2'), {});
  await begun(before + 1);
  for (let turn = 0; turn < 50; turn++) cache.get('note_1');
  await new Promise((resolve) => setTimeout(resolve, 20));
  t.equal(queries.length, before + 1);
});

t.test('the least recently used record makes room', async (t) => {
  const { cache, learn } = start({ capacity: 3 });
  for (const id of ['note_1', 'note_2', 'note_3'] as const) await learn(id, id);
  cache.get('note_1');
  await learn('note_4', 'fourth');
  t.equal(cache.size, 3);
  t.equal(cache.getFromMemory('note_2'), undefined);
  t.ok(cache.getFromMemory('note_1'));
});

t.test('what is not kept any more leaves nothing behind, however many others there are', async (t) => {
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
