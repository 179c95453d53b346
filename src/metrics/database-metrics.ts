import type { FastifyBaseLogger } from 'fastify';
import type { Registry } from 'prom-client';
import type { Db } from '../database/client.ts';
import type { DatabaseClock } from '../database/clock.ts';
import { readDifferenceCounts } from '../history/state-audit.ts';
import type { Job } from '../jobs/job.ts';
import { jobs } from '../jobs/list.ts';
import { stateOf } from '../jobs/policy.ts';
import { listJobRuns } from '../jobs/store.ts';
import { countSuspendedIdle } from '../keys/idle-store.ts';
import { countOpen } from '../recovery/store.ts';
import { backlogOf } from '../webhooks/sending-store.ts';
import { gauge, type Metric, type Sample } from './instruments.ts';

export interface DatabaseMetricsOptions {
  db: Db;
  clock: DatabaseClock;
  logger: Pick<FastifyBaseLogger, 'warn'>;
}

/**
 * Defines the metrics of the whole installation, which every replica reads from the database.
 * @returns reads their values, which the next collection reports
 */
export function defineDatabaseMetrics(
  registry: Registry,
  { db, clock, logger }: DatabaseMetricsOptions,
): () => Promise<void> {
  let known: Record<string, Sample[]> = {};
  const define = (metric: Metric) => gauge(registry, metric, () => known[metric.name] ?? []);
  const ofJob = (name: string, help: string) => define({ name: `job_${name}`, help, labels: ['name'] });
  ofJob('last_success_timestamp_seconds', 'When a background job last succeeded, on any replica.');
  ofJob('last_failure_timestamp_seconds', 'When a background job last failed, on any replica.');
  ofJob('last_duration_seconds', 'Duration of the last successful run of a job.');
  ofJob('last_done', 'Number of items that the last successful run of a job processed.');
  ofJob('overdue', '1 if a job has not succeeded for three of its periods.');
  define({
    name: 'state_differences',
    help: 'Members of records that differed from history in the last comparison.',
    labels: ['kind'],
  });
  define({ name: 'state_compared_timestamp_seconds', help: 'When all records were last compared with history.' });
  define({ name: 'keys_suspended_idle', help: 'Live keys that are suspended because they were not used.' });
  define({ name: 'recovery_requests_open', help: 'Recovery requests that are open.' });
  define({ name: 'recovery_requests_overdue', help: 'Recovery requests whose answer is overdue.' });
  define({
    name: 'webhook_deliveries_pending',
    help: 'Webhook deliveries that are pending, including those that wait for a retry.',
  });
  define({ name: 'webhook_oldest_due_seconds', help: 'Seconds since the oldest pending delivery became due.' });
  define({ name: 'database_up', help: '1 if this scrape could read everything from Postgres.' });

  const one = (value: number): Sample[] => [[{}, value]];
  const readers = [
    async () => {
      const runs = await listJobRuns(db);
      const ofRuns = (read: (run: (typeof runs)[number]) => number | null): Sample[] =>
        runs.flatMap((run): Sample[] => {
          const value = read(run);
          return value === null ? [] : [[{ name: run.name }, value]];
        });
      const byName = new Map(runs.map((run) => [run.name, run]));
      const now = new Date(clock.nowMs());
      const isOverdue = (job: Job) => Number(stateOf(job, byName.get(job.name), now) === 'overdue');
      const seconds = (at: Date | null) => (at === null ? null : at.getTime() / 1_000);
      return {
        job_last_success_timestamp_seconds: ofRuns((run) => seconds(run.last_succeeded_at)),
        job_last_failure_timestamp_seconds: ofRuns((run) => seconds(run.last_failed_at)),
        job_last_duration_seconds: ofRuns(({ last_duration_ms: ms }) => (ms === null ? null : ms / 1_000)),
        job_last_done: ofRuns((run) => run.last_count),
        job_overdue: jobs.map((job): Sample => [{ name: job.name }, isOverdue(job)]),
      };
    },
    async () => {
      const counts = await readDifferenceCounts(db);
      return {
        state_differences: counts.map(({ kind, count }): Sample => [{ kind }, count]),
        state_compared_timestamp_seconds: counts.slice(0, 1).map(({ at }): Sample => [{}, at.getTime() / 1_000]),
      };
    },
    async () => ({ keys_suspended_idle: one(await countSuspendedIdle(db)) }),
    async () => {
      const { open, overdue } = await countOpen(db, new Date(clock.nowMs()));
      return { recovery_requests_open: one(open), recovery_requests_overdue: one(overdue) };
    },
    async () => {
      const { pending, oldestDueSeconds } = await backlogOf(db, new Date(clock.nowMs()));
      return { webhook_deliveries_pending: one(pending), webhook_oldest_due_seconds: one(oldestDueSeconds) };
    },
  ];
  return async () => {
    const settled = await Promise.allSettled(readers.map((read): Promise<Record<string, Sample[]>> => read()));
    // What could not be read is left out: old values would look like current ones.
    const read = settled.map((outcome) => (outcome.status === 'fulfilled' ? outcome.value : undefined));
    known = Object.assign({ database_up: one(Number(!read.includes(undefined))) }, ...read);
    for (const outcome of settled) {
      if (outcome.status === 'rejected') {
        logger.warn(
          { err: outcome.reason },
          'Some metrics could not be read from the database. They are missing from this scrape.',
        );
      }
    }
  };
}
