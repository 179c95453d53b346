import { type Json, startService } from './support/app.ts';
import { dbQuery } from './support/database.ts';
import { eventually } from './support/process.ts';
import { twoReplicas } from './support/replicas.ts';
import { t } from './support/tap.ts';

t.test('bulk requests that race with other changes of the same keys leave a sound history and full rows', async (t) => {
  const service = await startService(t, { limits: { callerLimit: 1e6, addressLimit: 1e6, revealLimit: 1e6 } });
  const { admin, urls } = service;
  const allowed = new Set(['200', '201', 'already_deleted', 'conflict', 'row_full', 'rate_limited', 'not_restorable']);
  for (let round = 0; round < 12; round++) {
    const partners: Json[] = [];
    for (let index = 0; index < 4; index++) {
      const email = `p${round}-${index}@p.example`;
      partners.push((await admin.post('/v1/partners', { email, permissions: ['read', 'write'] })).body);
    }
    const ids: string[] = partners.flatMap(({ keys }) => keys.map(({ id }: Json) => id));
    const deleted = ids[0] ?? '';
    await admin.delete(`/v1/keys/${deleted}`);
    const opposite = [...ids].reverse();
    const replies = await Promise.all([
      admin.post('/v1/keys/bulk', { action: round % 2 === 0 ? 'suspend' : 'delete', keyIds: ids }),
      admin.post('/v1/keys/bulk', { action: 'delete', reason: 'compromised', keyIds: opposite }),
      admin.post(`/v1/keys/${ids[1]}/rotate`, {}),
      admin.post(`/v1/keys/${ids[2]}/rotate`, {}),
      admin.delete(`/v1/keys/${ids[3]}`),
      admin.post(`/v1/keys/${deleted}/restore`),
      admin.delete(`/v1/partners/${partners[2].id}`),
      admin.patch(`/v1/partners/${partners[3].id}`, { permissions: ['read'] }),
    ]);
    for (const { status, body } of replies) {
      const outcome = status < 300 ? String(status) : body.code;
      t.ok(allowed.has(outcome), `${status} ${outcome}`);
    }
  }
  t.match((await admin.get('/v1/history/verify')).body, { valid: true, stateDifferences: [] });
  const [{ orphans } = {}] = await dbQuery(
    urls.superuser,
    `select count(*)::int as orphans from api_keys k join partners p on p.id = k.partner_id
     where p.deleted_at is not null and k.deleted_at is null`,
  );
  t.equal(orphans, 0, 'no live key under a deleted partner');
});

t.test('keys that a bulk request deletes are rejected on another replica at once', async (t) => {
  const { replica, start, url } = await twoReplicas(t);
  await start();
  const keys: Json[] = [];
  for (let index = 0; index < 20; index++) {
    const email = `p${index}@p.example`;
    keys.push((await replica.admin.post('/v1/partners', { email, permissions: ['read'] })).body.keys[0]);
  }
  const verdictOf = async ({ key }: Json): Promise<string> => {
    const response = await fetch(`${url}/v1/verify`, {
      method: 'POST',
      headers: { authorization: `Bearer ${replica.verifier.token}`, 'content-type': 'application/json' },
      body: JSON.stringify({ key, permission: 'read' }),
    });
    return ((await response.json()) as Json).code;
  };
  const verdicts = async () => [...new Set(await Promise.all(keys.map(verdictOf)))];
  t.same(await verdicts(), ['valid']);
  const { body } = await replica.admin.post('/v1/keys/bulk', { action: 'delete', filter: { permission: 'read' } });
  t.equal(body.changed.length, 20);
  const repliedAtMs = performance.now();
  await eventually(async () => (await verdicts()).join() === 'deleted', 5_000);
  t.ok(performance.now() - repliedAtMs < 1_500, `all were rejected after ${performance.now() - repliedAtMs} ms`);
});
