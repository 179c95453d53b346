import type { FastifyBaseLogger } from 'fastify';
import { type JobHelpers, parseCronItems, type Runner, run } from 'graphile-worker';
import { connect } from '../database/client.ts';
import { requireCurrentSchema } from '../database/migrator.ts';
import type { Transactor } from '../database/work.ts';
import { workerSchema } from '../database/worker-schema.ts';
import { createBackoff, pause } from '../lib/backoff.ts';
import { abortable } from '../lib/deadline.ts';
import { startPeriodicTask } from '../lib/periodic-task.ts';
import { doubleReleaseSafePool, toWorkerLogger, watchFirstFetch } from './graphile-worker.ts';
import type { Job, JobSettings } from './job.ts';
import { runExclusively } from './lock.ts';
import { describeError, periodMsOf } from './policy.ts';
import { deleteAbandoned, insertJobs, markFailed, markStarted, markSucceeded } from './store.ts';

/** Runs due jobs while it is open. */
export interface JobRunner {
  /** Starts no more jobs. A job that does not end soon is left to another replica or the next start. */
  close(): Promise<void>;
}

interface JobRunnerOptions extends Omit<Transactor, 'db'> {
  /** The database URL of the service's role. Must not lead through a transaction pooler. */
  url: string;
  jobs: readonly Job[];
  settings: JobSettings;
  /** Handlers of tasks that other transactions enqueue, by name. They must be short. */
  tasks?: Record<string, (payload: unknown) => void>;
  logger: Pick<FastifyBaseLogger, 'debug' | 'info' | 'warn' | 'error'>;
}

/**
 * Limits per replica. Several jobs may run, so that tasks are not delayed; the worker needs connections to listen and
 * to poll.
 */
const jobsAtOnce = 4;
const connections = 8;

/** Generous, but it prevents a dead connection from blocking jobs forever. */
const queryTimeoutMs = 600_000;
const connectTimeoutMs = 10_000;

const pollIntervalMs = 2_000;
const restartBackoff = { minMs: 2_000, maxMs: 10_000 };
const jobGraceMs = 3_000;
const closeWithinMs = 5_000;

/**
 * Starts at once and never fails: without a database, it retries until it is closed.
 *
 * Each job has one queue row with the job's name as key. Several missed runs are done once. A row that a killed worker
 * left locked loses its key at the next due time and is never taken again.
 */
export function startJobs(options: JobRunnerOptions): JobRunner {
  const { url, jobs, tasks = {}, logger } = options;
  const client = connect({
    url,
    poolSize: connections,
    timeoutMs: queryTimeoutMs,
    connectTimeoutMs,
    onLost: (error) => logger.warn({ err: error }, 'The job runner lost a connection to Postgres. It will reconnect.'),
  });
  const { db } = client;
  const transactor = { ...options, db };
  let runner: Runner | undefined;

  async function perform(job: Job, signal: AbortSignal): Promise<void> {
    const wasRun = await runExclusively(url, job.name, async () => {
      const startedAtMs = performance.now();
      await markStarted(db, job.name);
      try {
        const count = await job.run({ transactor, settings: options.settings, logger, signal });
        const durationMs = performance.now() - startedAtMs;
        await markSucceeded(db, job.name, { count, durationMs });
        logger.info({ job: job.name, count, durationMs }, 'A job succeeded.');
      } catch (error) {
        logger.warn({ err: error, job: job.name }, 'A job failed. Latchkey will retry.');
        await markFailed(db, job.name, describeError(error));
        throw error;
      }
    });
    if (!wasRun) logger.info({ job: job.name }, 'A job is still running in another process, so it was skipped.');
  }

  /** Ends only after `close` or by an error. */
  async function work(closing: AbortSignal): Promise<void> {
    // graphile-worker would migrate an older schema by itself.
    await requireCurrentSchema(db);
    await insertJobs(
      db,
      jobs.map(({ name }) => name),
    );
    await deleteAbandoned(db);
    const now = new Date();
    let fetchError: unknown;
    runner = await run({
      events: watchFirstFetch((error) => {
        fetchError = error;
        runner?.stop().catch(() => undefined);
      }),
      pgPool: doubleReleaseSafePool(client.pool),
      schema: workerSchema,
      concurrency: jobsAtOnce,
      pollInterval: pollIntervalMs,
      noHandleSignals: true,
      gracefulShutdownAbortTimeout: jobGraceMs,
      logger: toWorkerLogger(logger),
      taskList: {
        ...tasks,
        ...Object.fromEntries(
          jobs.map((job) => [
            job.name,
            // At shutdown a job may still be running. Its remaining work is lost with the process.
            (_payload: unknown, { abortSignal }: JobHelpers) => abortable(perform(job, abortSignal), abortSignal),
          ]),
        ),
      },
      parsedCronItems: parseCronItems(jobs.map((job) => toCronItem(job, now))),
      // With the default (-1), nothing catches an error while a job is completed, and the process would end.
      preset: { worker: { completeJobBatchDelay: 0, failJobBatchDelay: 0 } },
    });
    if (closing.aborted || fetchError !== undefined) await runner.stop();
    await runner.promise;
    if (fetchError !== undefined) throw fetchError;
  }

  const backoff = createBackoff(restartBackoff);
  const working = startPeriodicTask({
    run: work,
    immediately: true,
    everyMs: () => backoff.nextMs(),
    onError: (error) => logger.warn({ err: error }, 'Background jobs cannot run. Latchkey will retry.'),
  });

  return {
    async close() {
      const stopped = working.close();
      const ended = Promise.all([runner?.stop().catch(() => undefined), stopped]).then(() => client.close());
      ended.catch((error: unknown) => logger.warn({ err: error }, 'The job runner did not close cleanly.'));
      await Promise.race([ended, pause(closeWithinMs)]);
    },
  };
}

function toCronItem({ name, schedule }: Job, now: Date) {
  return {
    task: name,
    identifier: name,
    match: schedule,
    // Runs a job that was missed while no service ran. One period back, it was certainly due.
    options: { backfillPeriod: periodMsOf(schedule, now), jobKey: name, jobKeyMode: 'replace' as const },
  };
}
