import type { FastifyBaseLogger } from 'fastify';
import { Logger } from 'graphile-worker';

/**
 * What graphile-worker has to say, in the service's log. Nothing of it is an error for whoever runs the service: it
 * tries again by itself, and a job that failed is logged where it was run.
 */
export function toWorkerLogger(logger: Pick<FastifyBaseLogger, 'debug' | 'warn'>): Logger {
  return new Logger(({ label, workerId }) => (level, message, meta) => {
    const isTrouble = ['error', 'warning'].includes(level) && meta?.['failure'] !== true;
    const facts = { label, workerId, err: meta?.['error'] };
    if (isTrouble) logger.warn(facts, `graphile-worker: ${message}`);
    else logger.debug(facts, `graphile-worker: ${message}`);
  });
}
