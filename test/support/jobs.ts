import type { Test } from 'tap';
import { createDatabaseClock } from '../../src/database/clock.ts';
import type { Job } from '../../src/jobs/job.ts';
import { type JobRunner, startJobs } from '../../src/jobs/runner.ts';
import { createLogger } from '../../src/service/logger.ts';
import { enqueueDeliveries } from '../../src/webhooks/enqueue-deliveries.ts';
import type { ClusterUrls } from './cluster.ts';
import { dbQuery } from './database.ts';
import { keyringOf } from './keyrings.ts';

/** A job that is rarely due by itself, so that the test triggers it. */
export function makeJob(name: string, run: Job['run'], schedule = '0 0 1 1 *'): Job {
  return { name, description: 'What a test wants.', schedule, run };
}

export interface TestRunner extends JobRunner {
  logLines: string[];
}

/** The jobs of a replica, closed when the test ends. */
export function startReplica(
  t: Test,
  url: string,
  jobs: readonly Job[],
  {
    usageHourlyDays = 35,
    retentionSeconds = 2_592_000,
    clock = createDatabaseClock(),
    keyring = keyringOf('test'),
  } = {},
): TestRunner {
  const logLines: string[] = [];
  const logger = createLogger({
    level: 'trace',
    tokenPrefix: 'lk',
    destination: { write: (line) => void logLines.push(line) },
  });
  const runner = startJobs({
    url,
    jobs,
    settings: { usageHourlyDays, retentionSeconds },
    keyring,
    clock,
    onAppended: enqueueDeliveries,
    logger,
  });
  t.teardown(() => runner.close());
  return { ...runner, logLines };
}

/** Simulates a job that is known for two years and whose last run was missed. */
export async function dbMissed(urls: ClusterUrls, name: string): Promise<void> {
  await dbQuery(
    urls.superuser,
    `insert into graphile_worker._private_known_crontabs values ($1, now() - interval '2 years', now() - interval '2 years')
     on conflict (identifier) do update set last_execution = excluded.last_execution`,
    [name],
  );
}

/** Enqueues the job, due now. */
export async function dbDue(urls: ClusterUrls, name: string): Promise<void> {
  await dbQuery(urls.app, 'select graphile_worker.add_job($1, job_key := $1)', [name]);
}

export async function dbQueue(urls: ClusterUrls): Promise<Array<Record<string, unknown>>> {
  return dbQuery(
    urls.superuser,
    'select task_identifier as name, key, locked_at is not null as locked from graphile_worker.jobs order by id',
  );
}
