import { countEvents, findDifferences, verifyChain } from '../bench/soak/books.ts';
import { runSoak } from '../bench/soak/load.ts';
import { startOutside } from '../bench/soak/outside.ts';
import { testCluster } from './support/cluster.ts';
import { dbQuery } from './support/database.ts';
import { runEntry } from './support/process.ts';
import { serve } from './support/served.ts';
import { holdTransaction } from './support/sessions.ts';
import { t } from './support/tap.ts';

// The short form of `npm run soak`, which takes ten minutes and also checks the memory.

t.test(
  'after a mixed load the chain is valid, and history, usage and webhooks equal what was acknowledged',
  async (t) => {
    const outside = await startOutside();
    t.teardown(() => outside.close());
    const served = await serve(t, {
      ...outside.env,
      LOG_LEVEL: 'info',
      CALLER_LIMIT: '1000000000',
      REVEAL_LIMIT: '1000000000',
      ADDRESS_LIMIT: '1000000000',
      PUBLIC_LIMIT: '1000000000',
      ARGON2_MEMORY_KIB: '8',
      ARGON2_TIME_COST: '1',
    });
    const { url, urls, tokens, env } = served;
    const tokenOf = (name: string) => tokens[name] ?? '';
    const target = {
      url,
      organizationId: tokenOf('organizationId'),
      adminToken: tokenOf('adminToken'),
      operatorToken: tokenOf('operatorToken'),
      verifierToken: tokenOf('verifierToken'),
    };
    const eventsBefore = await countEvents(urls.superuser);
    const tally = await runSoak(target, outside, {
      seconds: 12,
      verifiers: 6,
      writers: 1,
      pauseMs: { verifiers: 2, others: 20 },
    });
    t.same(tally.unexpected, []);
    t.ok(tally.allowed > 20 && tally.rateLimited > 1, `${tally.allowed} verifications were allowed`);
    for (const [story, rounds] of Object.entries(tally.rounds)) t.ok(rounds > 0, `${story} ran ${rounds} times`);
    const events = await verifyChain(target);
    t.ok(events !== undefined && events > 20, 'the chain is valid');
    served.process.child.kill('SIGTERM');
    t.same(await served.process.exited, { code: 0, signal: null });
    const audit = runEntry(t, 'cli/latchkey.ts', ['audit', 'verify'], { env });
    t.match(await audit.exited, { code: 0 }, audit.output());
    const books = { tally, outside, eventsBefore };
    const elsewhere = await holdTransaction(t, testCluster().urls.superuser, 'select 1');
    t.same(await findDifferences(urls.superuser, books), [], 'transactions of other databases do not count');
    await elsewhere.end();
    await dbQuery(
      urls.superuser,
      `insert into usage_hours values ('org_0', null, 'key_0', date_trunc('hour', now()), 1, 0, 0)`,
    );
    outside.arrived.delete(Math.max(...outside.arrived.keys()));
    await holdTransaction(t, urls.superuser, 'select 1');
    t.equal((await findDifferences(urls.superuser, books)).length, 3, 'each of three differences is found');
  },
);
