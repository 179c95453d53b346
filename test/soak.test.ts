import { countEvents, findDifferences, verifyChain } from '../bench/soak-check.ts';
import { runSoak } from '../bench/soak-load.ts';
import { dbQuery } from './support/database.ts';
import { request } from './support/process.ts';
import { serve } from './support/served.ts';
import { t } from './support/tap.ts';

// The short form of `npm run soak`, which takes ten minutes and also checks the memory.

t.test('after a mixed load the chain is valid, and history and usage equal the acknowledged requests', async (t) => {
  const {
    process: service,
    url,
    urls,
    tokens,
  } = await serve(t, {
    LOG_LEVEL: 'info',
    CALLER_LIMIT: '1000000000',
    REVEAL_LIMIT: '1000000000',
    ARGON2_MEMORY_KIB: '8',
    ARGON2_TIME_COST: '1',
  });
  const target = { url, adminToken: tokens['adminToken'] ?? '', verifierToken: tokens['verifierToken'] ?? '' };
  const unlimited = { requests: 1_000_000_000, windowSeconds: 60 };
  await request(`${url}/v1/rate-limit`, { method: 'PUT', token: target.adminToken, body: unlimited });
  const before = await countEvents(urls.superuser);
  const tally = await runSoak(target, {
    seconds: 12,
    verifiers: 8,
    writers: 3,
    readers: 2,
    pauseMs: { verifiers: 2, others: 20 },
  });
  t.same(tally.unexpected, []);
  t.ok(
    tally.allowed > 100 && (tally.changes['partner.deleted'] ?? 0) > 2,
    `${tally.allowed} verifications were allowed`,
  );
  const events = await verifyChain(target);
  t.ok(events !== undefined && events > 20, 'the chain is valid');
  service.child.kill('SIGTERM');
  t.same(await service.exited, { code: 0, signal: null });
  t.same(await findDifferences(urls.superuser, tally, before), []);
  await dbQuery(
    urls.superuser,
    `insert into usage_hours values ('org_0', null, 'key_0', date_trunc('hour', now()), 1, 0, 0)`,
  );
  t.equal((await findDifferences(urls.superuser, tally, before)).length, 1, 'a difference is found');
});
