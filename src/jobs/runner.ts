import type { FastifyBaseLogger } from 'fastify';
import { type JobHelpers, parseCronItems, type Runner, run } from 'graphile-worker';
import { connect } from '../database/client.ts';
import { requireCurrentSchema } from '../database/migrator.ts';
import type { Transactor } from '../database/work.ts';
import { workerSchema } from '../database/worker-schema.ts';
import { createBackoff, pause } from '../lib/backoff.ts';
import { abortable } from '../lib/deadline.ts';
import { startPeriodicTask } from '../lib/periodic-task.ts';
import { forgivingPool, toWorkerLogger, watchFirstFetch } from './graphile-worker.ts';
import type { Job, JobSettings } from './job.ts';
import { runAlone } from './lock.ts';
import { describeError, periodMsOf } from './policy.ts';
import { forgetAbandoned, insertJobs, markFailed, markStarted, markSucceeded } from './store.ts';

/** Runs jobs when they are due, for as long as it is open. */
export interface JobRunner {
  /** Takes no more jobs, and leaves one that does not end soon to another replica or the next start. */
  close(): Promise<void>;
}

interface JobRunnerOptions extends Omit<Transactor, 'db'> {
  /** As the service's role; not through a transaction pooler. */
  url: string;
  jobs: readonly Job[];
  settings: JobSettings;
  /** What other transactions have put into the queue, by name: each at once, and too short to be interrupted. */
  tasks?: Record<string, (payload: unknown) => void>;
  logger: Pick<FastifyBaseLogger, 'debug' | 'info' | 'warn' | 'error'>;
}

/** At once in one replica, so that tasks get through beside jobs; and the connections that it takes: one listens, some ask for work, some do it. */
const jobsAtOnce = 4;
const connections = 8;

/** Jobs are in no hurry, but a connection whose packets vanish must not hold them up for good. */
const queryTimeoutMs = 600_000;
const connectTimeoutMs = 10_000;

const askAgainAfterMs = 2_000;
const restartAfter = { leastMs: 2_000, mostMs: 10_000 };
const jobMayEndWithinMs = 3_000;
const closeWithinMs = 5_000;

/**
 * Starts at once and never fails: without a database, or with one that is lost later, it tries again until it is closed.
 *
 * What keeps graphile-worker's queue simple: a job's row carries the job's name as its key. What was due several times
 * while nobody ran is done once; a row that a killed worker has left locked loses its key when the job is due the next
 * time, and is never taken up again.
 */
export function startJobs(options: JobRunnerOptions): JobRunner {
  const { url, jobs, tasks = {}, logger } = options;
  const client = connect({
    url,
    poolSize: connections,
    timeoutMs: queryTimeoutMs,
    connectTimeoutMs,
    onLost: (error) => logger.warn({ err: error }, "A job's connection to Postgres was lost."),
  });
  const { db } = client;
  const transactor = { ...options, db };
  let runner: Runner | undefined;

  async function perform(job: Job, signal: AbortSignal): Promise<void> {
    const wasRun = await runAlone(url, job.name, async () => {
      const startedAtMs = performance.now();
      await markStarted(db, job.name);
      try {
        const count = await job.run({ transactor, settings: options.settings, logger, signal });
        const durationMs = performance.now() - startedAtMs;
        await markSucceeded(db, job.name, { count, durationMs });
        logger.info({ job: job.name, count, durationMs }, 'A job has run.');
      } catch (error) {
        logger.warn({ err: error, job: job.name }, 'A job has failed; it is tried again.');
        await markFailed(db, job.name, describeError(error));
        throw error;
      }
    });
    if (!wasRun) logger.info({ job: job.name }, 'A job is still running elsewhere, so it was not begun here.');
  }

  /** Resolves or throws when it has ended, which without `close` it does only in trouble. */
  async function work(closing: AbortSignal): Promise<void> {
    // Where the schema is older, graphile-worker would set about migrating it.
    await requireCurrentSchema(db);
    await insertJobs(
      db,
      jobs.map(({ name }) => name),
    );
    await forgetAbandoned(db);
    const now = new Date();
    let fetchError: unknown;
    runner = await run({
      events: watchFirstFetch((error) => {
        fetchError = error;
        runner?.stop().catch(() => undefined);
      }),
      pgPool: forgivingPool(client.pool),
      schema: workerSchema,
      concurrency: jobsAtOnce,
      pollInterval: askAgainAfterMs,
      noHandleSignals: true,
      gracefulShutdownAbortTimeout: jobMayEndWithinMs,
      logger: toWorkerLogger(logger),
      taskList: {
        ...tasks,
        ...Object.fromEntries(
          jobs.map((job) => [
            job.name,
            // A job may go on when the service should end; what it does from then on is lost with the process.
            (_payload: unknown, { abortSignal }: JobHelpers) => abortable(perform(job, abortSignal), abortSignal),
          ]),
        ),
      },
      parsedCronItems: parseCronItems(jobs.map((job) => toCronItem(job, now))),
      // Without a delay it does not wait for what a lost connection makes of the reply, and the whole process ends.
      preset: { worker: { completeJobBatchDelay: 0, failJobBatchDelay: 0 } },
    });
    if (closing.aborted || fetchError !== undefined) await runner.stop();
    await runner.promise;
    if (fetchError !== undefined) throw fetchError;
  }

  const backoff = createBackoff(restartAfter);
  const working = startPeriodicTask({
    run: work,
    immediately: true,
    everyMs: () => backoff.nextMs(),
    onError: (error) => logger.warn({ err: error }, 'Jobs cannot be run; this is tried again.'),
  });

  return {
    async close() {
      const stopped = working.close();
      const ended = Promise.all([runner?.stop().catch(() => undefined), stopped]).then(() => client.close());
      ended.catch((error: unknown) => logger.warn({ err: error }, 'Jobs did not end in order.'));
      await Promise.race([ended, pause(closeWithinMs)]);
    },
  };
}

function toCronItem({ name, schedule }: Job, now: Date) {
  return {
    task: name,
    identifier: name,
    match: schedule,
    // What was due last is made up for, however long nobody was there: one period back it was due for certain.
    options: { backfillPeriod: periodMsOf(schedule, now), jobKey: name, jobKeyMode: 'replace' as const },
  };
}
