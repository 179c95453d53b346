import path from 'node:path';
import { failures } from '../bench/failures/failures.ts';
import { startParts } from '../bench/failures/parts.ts';
import { keepsPromises } from './support/failures.ts';
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
    const phases = await keepsPromises(t, parts, [restart, replica, pooler, redis, primary], 1_500);
    for (const { name, longestGapMs, deletedKeys } of phases) {
      const cutsPostgres = /PgBouncer|primary/.test(name);
      if (cutsPostgres) t.ok(longestGapMs.change > 1_500, `${name}: no change succeeded in the meantime`);
      else t.ok(deletedKeys > 0, `${name}: keys were deleted`);
    }
  },
);
