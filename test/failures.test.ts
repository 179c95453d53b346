import path from 'node:path';
import { failures } from '../bench/failures/failures.ts';
import { startParts } from '../bench/failures/parts.ts';
import { runFailures } from '../bench/failures/run.ts';
import { unlessDebianPostgres } from './support/postgres-pair.ts';
import { unlessInstalled } from './support/programs.ts';
import { t } from './support/tap.ts';

// The short form of `npm run bench:failures`, which has four replicas and more failures.

const skip =
  unlessDebianPostgres() ||
  unlessInstalled('haproxy') ||
  unlessInstalled('pgbouncer') ||
  unlessInstalled('redis-server');

t.test(
  'a replica restarts without a rejected request; a replica, PgBouncer, a Redis server and the primary fail in turn: nothing acknowledged is lost, and no deleted key stays valid',
  { skip },
  async (t) => {
    const build = path.resolve('.test-build');
    const parts = await startParts(t, { build, replicas: 2, staleSeconds: 10, isSynchronous: true });
    const { restart, replica, pooler, redis, primary } = failures;
    const { phases, broken, acknowledged, replays } = await runFailures(
      t,
      parts,
      [restart, replica, pooler, redis, primary],
      {
        load: { verifiers: 2, writers: 2, followers: 2, pauseMs: { verifiers: 20, writers: 50 } },
        outageMs: 1_500,
        settleMs: 1_000,
        recoveryLimitMs: 20_000,
        log: (line) => t.comment(line),
      },
    );
    t.same(broken, []);
    t.ok(acknowledged > 40 && replays > 0, `${acknowledged} acknowledged changes, ${replays} repeated requests`);
    for (const { name, statuses, longestGapMs, deletedKeys } of phases) {
      t.ok((statuses.verify['200'] ?? 0) > 10, `${name}: keys were verified`);
      const cutsPostgres = /PgBouncer|primary/.test(name);
      if (cutsPostgres) t.ok(longestGapMs.change > 1_500, `${name}: no change succeeded in the meantime`);
      else t.ok(deletedKeys > 0, `${name}: keys were deleted`);
    }
  },
);
