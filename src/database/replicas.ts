import { setTimeout as delay } from 'node:timers/promises';
import { sql } from 'kysely';
import type pg from 'pg';
import type { Db, Tx } from './client.ts';

/** A running process of the service, as the database sees the session of its change feed. */
export interface Replica {
  pid: number;
  /** Names the version and the host. */
  applicationName: string | null;
  /** Null for a Unix socket, or if the role may not see it. */
  address: string | null;
  /** Null if the role may not see it. */
  connectedAt: Date | null;
}

/** The first half of the advisory locks' keys. The second half is the last migration that a replica knows. */
const lockClass = 'latchkey schema';

/**
 * Marks a session with the last migrations that its program knows, until the session ends. Waits while a migration
 * excludes such programs.
 */
export async function markSession(client: pg.ClientBase, lastKnown: readonly string[]): Promise<void> {
  await client.query('select pg_advisory_lock_shared(hashtext($1), hashtext(name)) from unnest($2::text[]) as name', [
    lockClass,
    lastKnown,
  ]);
}

/** A change feed notices within 2 s that its connection is lost, and connects again within 2.5 s if it can. */
const reconnectsWithinMs = 5_000;
const pollEveryMs = 100;

/**
 * If no replica whose last known migration is one of these is running, keeps such replicas from joining until the
 * transaction ends. Waits for replicas that are just reconnecting.
 * @returns the running ones; none: they are excluded
 */
export async function excludeReplicas(tx: Tx, lastKnown: readonly string[]): Promise<Replica[]> {
  const endsAtMs = performance.now() + reconnectsWithinMs;
  for (;;) {
    const { rows } = await sql<{ excluded: boolean }>`
      select pg_try_advisory_xact_lock(hashtext(${lockClass}), hashtext(name)) as excluded
      from unnest(${lastKnown}::text[]) as name`.execute(tx);
    const running = await listReplicas(tx, lastKnown);
    if (running.length > 0) return running;
    if (rows.every(({ excluded }) => excluded) && performance.now() >= endsAtMs) return [];
    await delay(pollEveryMs);
  }
}

/** The replicas whose last known migration is one of these, also those that wait until they may start. */
export async function listReplicas(db: Db, lastKnown: readonly string[]): Promise<Replica[]> {
  // Within a transaction, pg_stat_activity would be as old as its first use.
  await sql`select pg_stat_clear_snapshot()`.execute(db);
  const { rows } = await sql<Replica>`
    select distinct locks.pid, application_name as "applicationName", host(client_addr) as address,
      backend_start as "connectedAt"
    from pg_locks as locks left join pg_stat_activity as activity on activity.pid = locks.pid
    where locktype = 'advisory' and objsubid = 2 and locks.pid <> pg_backend_pid()
      and locks.database = (select oid from pg_database where datname = current_database())
      and int8(classid) = hashtext(${lockClass}) & 4294967295
      and int8(objid) in (select hashtext(name) & 4294967295 from unnest(${lastKnown}::text[]) as name)
    order by 2, 1`.execute(db);
  return rows;
}
