import { startService } from './support/app.ts';
import { dbQuery } from './support/database.ts';
import { t } from './support/tap.ts';

t.test('the database rejects rows that no view can show', async (t) => {
  const { admin, urls, organizationId } = await startService(t);
  await admin.post('/v1/partners', { email: 'p@p.example', permissions: ['read'] });
  await admin.post('/v1/keys', {});
  await admin.post('/v1/webhooks', { url: 'http://127.0.0.1:9/', events: ['*'] });
  const actors = [
    '{}',
    '[]',
    '"x"',
    '{"type":"nobody","id":"x","name":"x","email":null}',
    '{"type":"admin","id":1,"name":"x","email":null}',
  ];
  const good = { type: 'admin', id: 'x', name: 'x', email: null };
  actors.push(
    JSON.stringify({ ...good, createdByRoot: {} }),
    JSON.stringify({ ...good, createdByIds: [1] }),
    JSON.stringify({ ...good, createdByIds: 'x' }),
    JSON.stringify({ ...good, issuer: 1 }),
  );
  for (const table of ['organizations', 'partners', 'api_keys', 'access_tokens', 'webhook_endpoints']) {
    for (const actor of actors) {
      const update = dbQuery(urls.app, `update ${table} set created_by = $1`, [actor]);
      await t.rejects(update, { code: '23514' }, `${table}: ${actor}`);
    }
  }
  for (const [column, value] of [
    ['metadata', '[]'],
    ['metadata', '1'],
    ['allowed_ips', '{NULL}'],
  ]) {
    await t.rejects(
      dbQuery(urls.app, `update api_keys set ${column} = $1`, [value]),
      { code: '23514' },
      String(column),
    );
  }
  for (const chain of ['{}', '[]', '[{}]', '[1]']) {
    const update = dbQuery(urls.app, 'update access_tokens set creator_chain = $1', [chain]);
    await t.rejects(update, { code: '23514' }, chain);
  }
  t.equal((await admin.get('/v1/keys')).status, 200);
  t.equal((await admin.get('/v1/organization')).body.id, organizationId);
});

t.test('a time that RFC 3339 cannot express is shown as the nearest possible time', async (t) => {
  const { admin, urls } = await startService(t);
  const { body: partner } = await admin.post('/v1/partners', { email: 'p@p.example', permissions: ['read'] });
  const { body: key } = await admin.post('/v1/keys', {});
  for (const [time, shown] of [
    ['infinity', '9999-12-31T23:59:59.999Z'],
    ['-infinity', '0001-01-01T00:00:00.000Z'],
    ['20000-01-01T00:00:00Z', '9999-12-31T23:59:59.999Z'],
    ['2000-01-01T00:00:00Z BC', '0001-01-01T00:00:00.000Z'],
  ]) {
    await dbQuery(urls.app, 'update api_keys set created_at = $1, expires_at = $1', [time]);
    await dbQuery(urls.app, 'update partners set created_at = $1', [time]);
    for (const path of [`/v1/keys/${key.id}`, `/v1/partners/${partner.id}`]) {
      const { status, body } = await admin.get(path);
      t.match({ status, createdAt: body.createdAt }, { status: 200, createdAt: shown }, `${path}: ${time}`);
    }
    for (const path of ['/v1/keys', '/v1/partners', '/v1/rows']) t.equal((await admin.get(path)).status, 200, path);
  }
});
