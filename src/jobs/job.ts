import type { FastifyBaseLogger } from 'fastify';
import type { Transactor } from '../database/work.ts';

/** The dependencies of jobs. */
export interface JobDeps {
  transactor: Transactor;
  settings: JobSettings;
  /** For results that an operator must see. The start, success and failure of jobs are logged elsewhere. */
  logger: Pick<FastifyBaseLogger, 'error'>;
  /** Aborted at shutdown; long jobs check it between batches. */
  signal: AbortSignal;
}

export interface JobSettings {
  /** The number of days for which usage is kept by hour. */
  usageHourlyDays: number;
  /** How long deleted keys are kept for recovery by an operator. */
  retentionSeconds: number;
}

/** Scheduled work that runs once in the installation, regardless of the number of replicas. */
export interface Job {
  /** The name in the queue, in `job_runs` and in metrics. It identifies earlier runs, so it never changes. */
  name: string;
  /** A description for operators. */
  description: string;
  /** A crontab schedule in UTC: minute, hour, day of month, month, day of week. */
  schedule: string;
  /**
   * Must tolerate being run twice and being killed; the next run does the rest.
   * @returns how many items it processed
   */
  run(deps: JobDeps): Promise<number>;
}
