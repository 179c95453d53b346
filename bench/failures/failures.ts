import { setTimeout as delay } from 'node:timers/promises';
import pg from 'pg';
import type { PatroniMember } from '../../test/support/patroni.ts';
import { signalServer } from '../../test/support/postgres-pair.ts';
import type { Installation, Parts, PatroniParts } from './parts.ts';

/** One part that fails. */
export interface Failure<Started extends Installation> {
  name: string;
  /** Whether the replicas lose Postgres. Then a deleted key may be valid for as long as `VERIFY_STALE_SECONDS`. */
  cutsPostgres: boolean;
  /** It is part of every upgrade, so each request must succeed. */
  isOrderly?: true;
  /** Makes it fail. @returns its repair */
  begin(parts: Started): Promise<() => Promise<void>>;
  /** Replaces what was lost, as soon as every replica serves changes again. */
  complete?(parts: Started): Promise<void>;
}

function killReplicas(numbers: readonly number[]): Failure<Parts>['begin'] {
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
function losePrimary(name: string, signal: 'SIGKILL' | 'SIGSTOP'): Failure<Parts> {
  return {
    name,
    cutsPostgres: true,
    async begin(parts) {
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
    },
    complete: ({ postgres }) => postgres.addStandby(),
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
  primary: losePrimary('primary killed, standby promoted', 'SIGKILL'),
  hungPrimary: losePrimary('primary hung, standby promoted', 'SIGSTOP'),
} satisfies Record<string, Failure<Parts>>;

/** Patroni promotes another member before the repair ends. */
export const patroniFailures = {
  leader: {
    name: 'leader killed',
    cutsPostgres: true,
    async begin({ patroni }) {
      const lost = await patroni.leader();
      await lost.signal('SIGKILL');
      return () => patroni.untilPromoted(lost);
    },
    complete: ({ patroni }) => patroni.restore(),
  },
  hungLeader: hangLeader(),
  switchover: {
    name: 'orderly switchover',
    cutsPostgres: true,
    async begin({ patroni }) {
      const former = await patroni.leader();
      await patroni.switchover();
      return () => patroni.untilPromoted(former);
    },
    complete: ({ patroni }) => patroni.restore(),
  },
} satisfies Record<string, Failure<PatroniParts>>;

/** The leader hangs until another one is promoted. As soon as it continues, it must confirm nothing and follow. */
function hangLeader(): Failure<PatroniParts> {
  let lost: PatroniMember | undefined;
  let confirmed: Promise<boolean> | undefined;
  return {
    name: 'leader hung',
    cutsPostgres: true,
    async begin({ patroni }) {
      const leader = await patroni.leader();
      lost = leader;
      const session = new pg.Client(leader.superuserUrl);
      session.on('error', () => undefined);
      await session.connect();
      await leader.signal('SIGSTOP');
      confirmed = session.query('create table confirmed_by_hung_leader ()').then(
        () => true,
        () => false,
      );
      return () => patroni.untilPromoted(leader);
    },
    async complete({ patroni }) {
      await patroni.restore();
      if (await confirmed) throw new Error('the leader that hung has confirmed a change after another was promoted');
      if ((await patroni.leader()) === lost) throw new Error('the leader that hung leads again');
    },
  };
}
