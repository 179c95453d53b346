import path from 'node:path';
import { patroniFailures } from '../bench/failures/failures.ts';
import { startPatroniParts } from '../bench/failures/parts.ts';
import { keepsPromises } from './support/failures.ts';
import { unlessPatroni } from './support/patroni.ts';
import { t } from './support/tap.ts';

// The short form of `npm run bench:failures -- --patroni`.

t.test(
  'behind Patroni the leader is killed, hangs and hands over in turn: known keys stay valid, nothing acknowledged is lost, and no deleted key stays valid',
  { skip: unlessPatroni() },
  async (t) => {
    const parts = await startPatroniParts(t, { build: path.resolve('.test-build'), replicas: 2, staleSeconds: 30 });
    const { leader, hungLeader, switchover } = patroniFailures;
    for (const { name, statuses } of await keepsPromises(t, parts, [leader, hungLeader, switchover], 0)) {
      t.same(Object.keys(statuses.verify), ['200'], `${name}: every verification got its verdict`);
    }
  },
);
