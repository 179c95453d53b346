import type { FastifyBaseLogger } from 'fastify';
import type { Transactor } from '../database/work.ts';

/** What jobs need to do their work. */
export interface JobDeps {
  transactor: Transactor;
  settings: JobSettings;
  /** For what somebody must look at. That a job has run or failed is logged without it. */
  logger: Pick<FastifyBaseLogger, 'error'>;
  /** Aborted when the service stops: a long job looks at it between its batches. */
  signal: AbortSignal;
}

export interface JobSettings {
  /** Days before today for which usage is kept by the hour. */
  usageHourlyDays: number;
  /** How long deleted keys are kept for an operator to bring them back. */
  retentionSeconds: number;
}

/** Work that the clock asks for: done once in the whole installation, however many replicas there are. */
export interface Job {
  /** What it is called in the queue, in `job_runs` and in metrics; its last run is found by it, so it never changes. */
  name: string;
  /** For people. */
  does: string;
  /** When it is due, in UTC: minute, hour, day of the month, month and day of the week, as in a crontab. */
  schedule: string;
  /**
   * Must bear to be run twice and to be killed anywhere: what is left is done by the next run.
   * @returns how many things it did
   */
  run(deps: JobDeps): Promise<number>;
}
