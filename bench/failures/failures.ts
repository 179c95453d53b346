import { setTimeout as delay } from 'node:timers/promises';
import { signalServer } from '../../test/support/postgres-pair.ts';
import type { Parts } from './parts.ts';

/** One part that fails. */
export interface Failure {
  name: string;
  /** Whether the replicas lose Postgres. Then a deleted key may be valid for as long as `VERIFY_STALE_SECONDS`. */
  cutsPostgres: boolean;
  /** It is part of every upgrade, so each request must succeed. */
  isOrderly?: true;
  /** Makes it fail. @returns its repair */
  begin(parts: Parts): Promise<() => Promise<void>>;
}

function killReplicas(numbers: readonly number[]): Failure['begin'] {
  return async ({ replicas }) => {
    const killed = replicas.filter(({ number }) => numbers.includes(number));
    for (const replica of killed) replica.kill();
    return async () => {
      await Promise.all(killed.map((replica) => replica.start()));
    };
  };
}

/** How long the standby receives nothing before the primary stops: what was acknowledged then is lost, if anything was. */
const stalledMs = 1_000;

/** The primary stops, and the standby becomes the primary. */
function losePrimary(signal: 'SIGKILL' | 'SIGSTOP'): Failure['begin'] {
  return async (parts) => {
    const lost = parts.postgres.primary;
    await parts.postgres.stall();
    await delay(stalledMs);
    await signalServer(lost, signal);
    return async () => {
      await parts.postgres.promote();
      await parts.redirectPooler();
      // A primary that only hung must not come back beside the new one.
      await signalServer(lost, 'SIGKILL');
    };
  };
}

export const failures = {
  none: { name: 'nothing', cutsPostgres: false, begin: async () => async () => undefined },
  restart: {
    name: 'one replica restarted',
    cutsPostgres: false,
    isOrderly: true,
    async begin({ replicas: [replica] }) {
      await replica?.stop();
      return async () => replica?.start();
    },
  },
  replica: { name: 'one replica killed', cutsPostgres: false, begin: killReplicas([1]) },
  replicas: { name: 'two replicas killed', cutsPostgres: false, begin: killReplicas([2, 3]) },
  hungReplica: {
    name: 'one replica hung',
    cutsPostgres: false,
    async begin({ replicas: [replica] }) {
      replica?.process.child.kill('SIGSTOP');
      return async () => void replica?.process.child.kill('SIGCONT');
    },
  },
  balancer: {
    name: 'HAProxy reloaded',
    cutsPostgres: false,
    async begin({ balancer }) {
      balancer.process.child.kill('SIGUSR2');
      return async () => undefined;
    },
  },
  pooler: {
    name: 'PgBouncer killed',
    cutsPostgres: true,
    async begin({ pooler }) {
      pooler.process.child.kill('SIGKILL');
      await pooler.process.exited;
      return () => pooler.restart();
    },
  },
  redis: {
    name: 'one Redis server killed',
    cutsPostgres: false,
    async begin({ redis: { nodes } }) {
      nodes[0]?.process.child.kill('SIGKILL');
      await nodes[0]?.process.exited;
      return async () => nodes[0]?.restart();
    },
  },
  standby: {
    name: 'standby killed',
    cutsPostgres: false,
    async begin({ postgres }) {
      if (postgres.standby !== undefined) await signalServer(postgres.standby, 'SIGKILL');
      return () => postgres.addStandby();
    },
  },
  primary: { name: 'primary killed, standby promoted', cutsPostgres: true, begin: losePrimary('SIGKILL') },
  hungPrimary: { name: 'primary hung, standby promoted', cutsPostgres: true, begin: losePrimary('SIGSTOP') },
} satisfies Record<string, Failure>;

export type FailureName = keyof typeof failures;
