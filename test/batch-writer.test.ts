import { once } from 'node:events';
import { connect, type Socket } from 'node:net';
import type { Test } from 'tap';
import { newId } from '../src/domain/ids.ts';
import { createBatchWriter } from '../src/lib/batch-writer.ts';
import { createRefusalRecorder, type Refusal } from '../src/refused-requests/recorder.ts';
import { type Json, startService } from './support/app.ts';
import { createTestClock } from './support/clock.ts';
import { dbQuery } from './support/database.ts';
import { eventually } from './support/process.ts';
import { t } from './support/tap.ts';

class Rejection extends Error {}

interface Entry {
  id: number;
  count: number;
}

/** Writes into a list. It can reject entries, or be unavailable. */
function startWriter(t: Test, { bad = [], capacity = 1_000 }: { bad?: number[]; capacity?: number } = {}) {
  const written: Entry[] = [];
  const batches: number[] = [];
  const lines: Array<{ facts: Json; message: string }> = [];
  const state = { isAway: false, underWay: 0, mostUnderWay: 0 };
  const writer = createBatchWriter<number, Entry>({
    name: 'Numbers',
    async write(batch) {
      state.underWay += 1;
      state.mostUnderWay = Math.max(state.mostUnderWay, state.underWay);
      await new Promise(setImmediate);
      state.underWay -= 1;
      batches.push(batch.length);
      if (state.isAway) throw new Error('away');
      if (batch.some(({ id }) => bad.includes(id))) throw new Rejection('bad number');
      written.push(...batch.map((entry) => ({ ...entry })));
    },
    batchSize: 8,
    capacity,
    groupOf: ({ id }) => id % 2,
    merge: (waiting, more) => {
      waiting.count += more.count;
    },
    isRejection: (error) => error instanceof Rejection,
    describe: ({ id }) => ({ id }),
    logger: { warn: (facts, message) => void lines.push({ facts, message }) },
    intervalMs: 5,
  });
  t.teardown(() => writer.close());
  const add = (id: number) => writer.add(id, { id, count: 1 });
  return { writer, add, written, batches, lines, state };
}

t.test('rejected entries are logged and skipped, and all others are written', async (t) => {
  const bad = [3, 17, 18, 41];
  const { writer, add, written, batches, lines } = startWriter(t, { bad });
  for (let id = 0; id < 50; id++) add(id);
  await writer.flush();
  const good = Array.from({ length: 50 }, (_, id) => id).filter((id) => !bad.includes(id));
  t.same(
    written.map(({ id }) => id).sort((a, b) => a - b),
    good,
  );
  const named = lines.filter(({ message }) => message === 'Numbers: one was rejected and dropped.');
  t.same(named.map(({ facts }) => facts.entry.id).sort(), bad.toSorted());
  t.ok(named.every(({ facts }) => facts.err instanceof Rejection));
  t.ok(batches.every((size) => size <= 8));
  const before = batches.length;
  await writer.flush();
  t.equal(batches.length, before, 'rejected entries are not retried');
});

t.test('if all entries are rejected, the log names a few and counts the others', async (t) => {
  const { writer, add, lines } = startWriter(t, { bad: Array.from({ length: 100 }, (_, id) => id) });
  for (let id = 0; id < 100; id++) add(id);
  await writer.flush();
  t.equal(lines.length, 11);
  t.match(lines.at(-1), { facts: { rejected: 100, dropped: 0 } });
});

t.test(
  'entries that fail for another reason wait, are merged with new ones, and never exceed the capacity',
  async (t) => {
    const { writer, add, written, lines, state } = startWriter(t, { capacity: 20 });
    state.isAway = true;
    for (let id = 0; id < 20; id++) t.equal(add(id), true);
    await writer.flush();
    t.match(lines[0], { facts: { rows: 20 }, message: 'Numbers: not written. Latchkey will retry.' });
    t.equal(add(7), true, 'merged into a waiting entry');
    t.equal(add(20), false);
    state.isAway = false;
    await writer.flush();
    t.equal(written.length, 20);
    t.equal(written.find(({ id }) => id === 7)?.count, 2);
    t.match(lines.at(-1), { facts: { dropped: 1, rejected: 0 }, message: 'Numbers: some could not be written.' });
    t.equal(add(20), true);
  },
);

t.test('entries are written automatically, one batch at a time, and closing writes the rest', async (t) => {
  const { writer, add, written, state } = startWriter(t);
  add(1);
  await eventually(async () => written.length === 1);
  for (let id = 2; id < 40; id++) add(id);
  const flushed = [writer.flush(), writer.flush()];
  add(40);
  await Promise.all([...flushed, writer.close()]);
  t.equal(written.length, 40);
  t.equal(state.mostUnderWay, 1);
});

const refusal = (overrides: Partial<Refusal> & { who: string }): Refusal => ({
  organizationId: null,
  caller: { type: 'verifier', id: overrides.who, name: overrides.who, email: null },
  operation: 'listKeys',
  code: 'forbidden',
  ip: '::1',
  ...overrides,
});

t.test('a refused attempt that Postgres cannot store does not delay the others', async (t) => {
  const { client, urls } = await startService(t);
  const lines: Json[] = [];
  const clock = createTestClock();
  const logger = { warn: (facts: Json) => void lines.push(facts) };
  const recorder = createRefusalRecorder({ db: client.db, clock, logger });
  t.teardown(() => recorder.close());
  recorder.count(refusal({ who: 'good' }));
  recorder.count(refusal({ who: 'null\u0000byte' }));
  recorder.count(
    refusal({ who: Array.from({ length: 9_000 }, () => Math.random().toString(36).slice(2, 3)).join('') }),
  );
  recorder.count(refusal({ who: 'nowhere', ip: undefined }));
  recorder.count(refusal({ who: 'lost', organizationId: newId('org') }));
  clock.move(8e15);
  recorder.count(refusal({ who: 'far future' }));
  clock.move(-8e15);
  recorder.count(refusal({ who: 'last' }));
  await recorder.flush();
  const rows = await dbQuery(urls.superuser, 'select caller_id, last_ip from refused_attempts order by 1');
  t.same(rows, [
    { caller_id: 'good', last_ip: '::1' },
    { caller_id: 'last', last_ip: '::1' },
    { caller_id: 'lost', last_ip: '::1' },
    { caller_id: 'nowhere', last_ip: null },
  ]);
  t.same(lines.filter(({ entry }) => entry !== undefined).length, 3);
  recorder.count(refusal({ who: 'good' }));
  await recorder.flush();
  t.match(await dbQuery(urls.superuser, "select count from refused_attempts where caller_id = 'good'"), [
    { count: '2' },
  ]);
});

t.test('attempts are recorded even if the client resets the connection before the reply', async (t) => {
  const { app, admin, verifier, logLines } = await startService(t);
  const { port } = new URL(await app.listen({ host: '127.0.0.1', port: 0 }));
  const resets = Array.from({ length: 20 }, async () => {
    const socket: Socket = connect(Number(port), '127.0.0.1');
    socket.on('error', () => undefined);
    await once(socket, 'connect');
    socket.write(`GET /v1/keys HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer ${verifier.token}\r\n\r\n`, () =>
      socket.resetAndDestroy(),
    );
    await once(socket, 'close');
  });
  await Promise.all(resets);
  t.equal((await verifier.get('/v1/partners')).status, 403);
  const refused = async () => (await admin.get('/v1/history?kind=refused&operation=listPartners')).body.data;
  t.match(await eventually(async () => (await refused())[0]), { caller: { type: 'verifier' }, count: 1 });
  t.equal((await admin.get('/v1/history?kind=refused')).status, 200);
  t.notMatch(logLines.join(''), 'Refused attempts: not written');
});

t.test('a use of a deleted key that history rejects is skipped, and the others are recorded', async (t) => {
  const { admin, verifier, verification, urls, logLines } = await startService(t);
  const keys: Json[] = [];
  for (let number = 0; number < 5; number++) {
    const { body: key } = await admin.post('/v1/keys', {});
    await admin.delete(`/v1/keys/${key.id}`);
    keys.push(key);
  }
  const [bad, ...good] = keys;
  await dbQuery(urls.owner, `alter table deleted_key_uses add constraint broken check (key_id <> '${bad.id}')`);
  const present = () =>
    Promise.all(keys.map(({ key }) => verifier.post('/v1/verify', { key, permission: 'read', ip: '::1' })));
  await present();
  await verification.usage.flush();
  const { body: history } = await admin.get('/v1/history?action=key.used_after_deletion');
  t.same(history.data.map(({ keyId }: Json) => keyId).sort(), good.map(({ id }) => id).sort());
  const rejections = () => logLines.filter((line) => line.includes('Uses of deleted keys: one was rejected')).length;
  t.equal(rejections(), 1);
  await present();
  await verification.usage.flush();
  t.equal(rejections(), 1, 'it is not retried within the hour');
});

t.test('usage that the database rejects does not delay the usage of other keys', async (t) => {
  const { admin, verifier, verification, urls, logLines, organizationId } = await startService(t);
  const keys: Json[] = [];
  for (let number = 0; number < 40; number++) {
    const email = `p${number}@p.example`;
    const { body: partner } = await admin.post('/v1/partners', { email, permissions: ['read'] });
    keys.push(partner.keys[0]);
  }
  const [rejected, full] = keys;
  await dbQuery(urls.owner, `alter table usage_hours add constraint broken check (key_id <> '${rejected.id}')`);
  // The sum of this counter will be out of range.
  await dbQuery(
    urls.superuser,
    "insert into usage_hours values ($1, null, $2, date_trunc('hour', now(), 'UTC'), 9223372036854775807, 0, 0)",
    [organizationId, full.id],
  );
  const use = async () => {
    await Promise.all(keys.map(({ key }) => verifier.post('/v1/verify', { key, permission: 'read' })));
    await verification.usage.flush();
  };
  const allowed = async () => {
    const rows = await dbQuery(urls.superuser, 'select key_id as id, allowed from usage_hours');
    const found = new Map(rows.map(({ id, allowed }) => [id, allowed]));
    return keys.map(({ id }) => found.get(id));
  };
  await use();
  t.same(await allowed(), [undefined, '9223372036854775807', ...keys.slice(2).map(() => '1')]);
  const named = logLines.filter((line) => line.includes('Usage: one was rejected and dropped.'));
  t.same(named.map((line) => JSON.parse(line).entry.keyId).sort(), [rejected.id, full.id].sort());
  await dbQuery(urls.owner, 'alter table usage_hours drop constraint broken');
  await use();
  t.same(await allowed(), ['1', '9223372036854775807', ...keys.slice(2).map(() => '2')]);
});
