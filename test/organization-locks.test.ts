import { sql } from 'kysely';
import { connect } from '../src/database/client.ts';
import type { OrganizationId } from '../src/domain/ids.ts';
import { lockOrganization, lockOrganizationShared } from '../src/organizations/store.ts';
import { startService } from './support/app.ts';
import { t } from './support/tap.ts';

t.test('a change of the organization does not wait for changes of keys that begin after it', async (t) => {
  const { admin, client, organizationId } = await startService(t);
  const deadlineMs = performance.now() + 15_000;
  let isOver = false;
  let held = 0;
  // Each holder begins while another one still has the lock, as on a busy service.
  const holders = Array.from({ length: 4 }, async (_, index) => {
    await sql`select pg_sleep(${index * 0.03})`.execute(client.db);
    while (!isOver && performance.now() < deadlineMs) {
      await client.db.transaction().execute(async (tx) => {
        await lockOrganizationShared(tx, organizationId as OrganizationId);
        await sql`select pg_sleep(0.12)`.execute(tx);
        held += 1;
      });
    }
  });
  for (const requests of [1_001, 1_002, 1_003]) {
    const before = held;
    const { status } = await admin.put('/v1/rate-limit', { requests, windowSeconds: 60 });
    t.equal(status, 200);
    t.ok(held - before <= 20, `${held - before} others had the lock meanwhile`);
  }
  isOver = true;
  t.ok(performance.now() < deadlineMs, 'the holders were still running');
  await Promise.all(holders);
  const { body } = await admin.get('/v1/history?action=rate_limit.updated');
  t.equal(body.data.length, 3);
  t.equal(body.data[0].details.changes.requests.to, 1_003);
});

t.test('a replica that hangs within a change blocks its organization for seconds only', async (t) => {
  const { admin, urls, organizationId } = await startService(t);
  const hung = connect({ url: urls.app, poolSize: 1 });
  t.teardown(hung.close);
  let isFree = false;
  const change = hung.db.transaction().execute(async (tx) => {
    await lockOrganization(tx, organizationId);
    const { status } = await admin.put('/v1/rate-limit', { requests: 1_001, windowSeconds: 60 });
    isFree = status === 200;
    await sql`select 1`.execute(tx);
  });
  await t.rejects(change, 'it cannot continue');
  t.ok(isFree, 'the other change waited, and was done');
  const { body } = await admin.get('/v1/history?action=rate_limit.updated');
  t.equal(body.data.length, 1);
});
