import path from 'node:path';
import { patroniFailures } from '../bench/failures/failures.ts';
import { startPatroniParts } from '../bench/failures/parts.ts';
import { runFailures } from '../bench/failures/run.ts';
import { unlessPatroni } from './support/patroni.ts';
import { t } from './support/tap.ts';

// The short form of `npm run bench:failures -- --patroni`.

t.test(
  'behind Patroni the leader is killed, hangs and hands over in turn: known keys stay valid, nothing acknowledged is lost, and no deleted key stays valid',
  { skip: unlessPatroni() },
  async (t) => {
    const parts = await startPatroniParts(t, { build: path.resolve('.test-build'), replicas: 2, staleSeconds: 30 });
    const { leader, hungLeader, switchover } = patroniFailures;
    const { phases, broken, acknowledged, replays } = await runFailures(t, parts, [leader, hungLeader, switchover], {
      load: { verifiers: 2, writers: 2, followers: 2, pauseMs: { verifiers: 20, writers: 50 } },
      outageMs: 0,
      settleMs: 1_000,
      recoveryLimitMs: 20_000,
      log: (line) => t.comment(line),
    });
    t.same(broken, []);
    t.ok(acknowledged > 40 && replays > 0, `${acknowledged} acknowledged changes, ${replays} repeated requests`);
    for (const { name, statuses } of phases) {
      const { 200: valid = 0, ...others } = statuses.verify;
      t.ok(valid > 10, `${name}: keys were verified`);
      t.same(others, {}, `${name}: every verification got its verdict`);
    }
  },
);
