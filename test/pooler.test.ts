import { startService } from './support/app.ts';
import { createDatabase, dbQuery } from './support/database.ts';
import { poolerTo } from './support/pooler.ts';
import { eventually } from './support/process.ts';
import { unlessInstalled } from './support/programs.ts';
import { t } from './support/tap.ts';

// A pooler that hands out connections by transaction delivers no notifications, and says nothing about it.

t.test('a transaction pooler', { skip: unlessInstalled('pgbouncer') }, async (t) => {
  const urls = await createDatabase(t);
  const pooled = await poolerTo(t, urls.app);

  await t.test('listening through it: nothing is answered from memory, and the log says what to set', async (t) => {
    const service = await startService(t, { urls, state: { listenUrl: pooled } });
    const { body: key } = await service.admin.post('/v1/keys', {});
    const ask = async () =>
      (await service.verifier.post('/v1/verify', { key: key.key, permission: 'read' })).body.code as string;
    t.equal(await ask(), 'valid');
    await dbQuery(urls.superuser, 'update api_keys set suspended_at = now() where id = $1', [key.id]);
    t.equal(await ask(), 'suspended');
    await eventually(async () =>
      service.logLines.join('').includes('LISTEN_DATABASE_URL must lead to the same database'),
    );
    t.equal(service.verification.feed.isLive(), false);
  });
});

t.test('listening to another database: nothing is answered from memory, and the log says so', async (t) => {
  const elsewhere = await createDatabase(t);
  const service = await startService(t, { state: { listenUrl: elsewhere.app } });
  const { body: key } = await service.admin.post('/v1/keys', {});
  const ask = async () =>
    (await service.verifier.post('/v1/verify', { key: key.key, permission: 'read' })).body.code as string;
  t.equal(await ask(), 'valid');
  await dbQuery(service.urls.superuser, 'update api_keys set suspended_at = now() where id = $1', [key.id]);
  t.equal(await ask(), 'suspended');
  await eventually(async () =>
    service.logLines.join('').includes('LISTEN_DATABASE_URL must lead to the same database'),
  );
  t.equal(service.verification.feed.isLive(), false);
});
