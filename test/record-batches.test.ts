import { sql } from 'kysely';
import type { Test } from 'tap';
import { connect } from '../src/database/client.ts';
import { KeyCache } from '../src/verification/key-cache.ts';
import { type Json, startService } from './support/app.ts';
import { createDatabase, dbQuery } from './support/database.ts';
import { eventually } from './support/process.ts';
import { t } from './support/tap.ts';

// Records are read in batches. A slow, huge or broken record fails alone, and does not count as a database failure.

type NoteId = `note_${string}`;
const noteId = (what: string | number): NoteId => `note_${what}`;

interface Note {
  id: NoteId;
  readAtMs: number;
}

/** A cache of notes in Postgres. A note that is `slow` exceeds the query timeout; a `broken` one is an error. */
async function startCache(t: Test) {
  const { app: url } = await createDatabase(t);
  const { db, close } = connect({ url, poolSize: 6, timeoutMs: 2_000 });
  t.teardown(close);
  const healthChanges: boolean[] = [];
  const batches: number[] = [];
  const cache = new KeyCache<NoteId, Note>({
    async load(ids) {
      if (ids.length > 0) batches.push(ids.length);
      const { rows } = await sql<{ id: NoteId }>`
        select id, case when id like '%slow%' then pg_sleep(5)::text when id like '%broken%' then (1 / (length(id) - length(id)))::text end
        from unnest(${ids}::text[]) as note (id)`.execute(db);
      return rows.map(({ id }) => ({ id, readAtMs: performance.now() }));
    },
    dependsOn: () => [],
    capacity: 10_000,
    staleMs: 0,
    feed: { isLive: () => true, subscribe: () => undefined, caughtUpAtMs: 0 },
    onHealth: (isHealthy) => void healthChanges.push(isHealthy),
  });
  const read = async (id: NoteId) => (await cache.get(id))?.id;
  return { cache, read, healthChanges, batches };
}

for (const bad of ['slow', 'broken'] as const) {
  t.test(`a ${bad} record fails alone, and the rest of its batch is read`, async (t) => {
    const { read, healthChanges, batches } = await startCache(t);
    const ids = Array.from({ length: 60 }, (_, index) => noteId(index === 30 ? bad : index));
    const results = await Promise.allSettled(ids.map(read));
    t.same(
      results.flatMap(({ status }, index) => (status === 'rejected' ? [ids[index]] : [])),
      [noteId(bad)],
    );
    t.same(healthChanges, [], 'the database counts as healthy');

    await t.test(`a ${bad} record does not delay later batches`, async (t) => {
      batches.length = 0;
      const again = read(noteId(bad)).catch(() => 'failed');
      const startedAtMs = performance.now();
      const others = Array.from({ length: 40 }, (_, index) => noteId(`later ${index}`));
      t.same(await Promise.all(others.map(read)), others);
      t.ok(performance.now() - startedAtMs < 1_900, 'no other read waits for it');
      t.equal(await again, 'failed');
      t.same(
        batches.sort((a, b) => a - b),
        [1, 40],
      );
    });
  });
}

t.test('metadata is stored as sent, and its maximum size is that of the stored text', async (t) => {
  const { admin, verifier, urls } = await startService(t);
  const { body: partner } = await admin.post('/v1/partners', { email: 'p@p.example', permissions: ['read'] });
  const metadata = { a: Array.from({ length: 2_330 }, () => 1e308) };
  const { status, body: key } = await admin.post('/v1/keys', { partnerId: partner.id, metadata });
  t.equal(status, 201);
  const sizes = await dbQuery(
    urls.superuser,
    'select octet_length(metadata::text) as bytes from api_keys where id = $1',
    [key.id],
  );
  t.same(sizes, [{ bytes: JSON.stringify(metadata).length }]);
  t.same((await admin.get(`/v1/keys/${key.id}`)).body.metadata, metadata);
  t.same((await verifier.post('/v1/verify', { key: key.key, permission: 'read' })).body.metadata, metadata);
  t.match(await admin.patch(`/v1/keys/${key.id}`, { metadata: { a: [...metadata.a, ...Array(11).fill(1e308)] } }), {
    status: 400,
    body: { errors: [{ path: 'body.metadata', message: /16384 bytes/ }] },
  });
  await t.rejects(
    dbQuery(
      urls.superuser,
      `update api_keys set metadata = ('{"a":"' || repeat('x', 16384) || '"}')::json where id = $1`,
      [key.id],
    ),
    /api_keys_metadata_size/,
    'the database enforces the limit',
  );
  const order = { z: 1, a: { y: 1, b: 2 }, '1': 0.1 };
  await admin.patch(`/v1/keys/${key.id}`, { metadata: order });
  t.same((await admin.get(`/v1/keys/${key.id}`)).body.metadata, order);
});

t.test('a row with a time that RFC 3339 cannot express fails no request', async (t) => {
  const { admin, verifier, urls, logLines } = await startService(t);
  const keys: Json[] = [];
  for (let round = 0; round < 6; round++) {
    const { body: partner } = await admin.post('/v1/partners', { email: `p${round}@p.example`, permissions: ['read'] });
    keys.push(partner.keys[0]);
  }
  await dbQuery(urls.superuser, "update api_keys set created_at = 'infinity' where id = $1", [keys[2].id]);
  const statuses = await eventually(async () => {
    const replies = await Promise.all(keys.map(({ key }) => verifier.post('/v1/verify', { key, permission: 'read' })));
    return replies.map(({ status }) => status);
  });
  t.same(statuses, [200, 200, 200, 200, 200, 200]);
  t.notMatch(logLines.join(''), 'Records cannot be read');
});
