import { EventEmitter } from 'node:events';
import type { FastifyBaseLogger } from 'fastify';
import { Logger, type WorkerEvents } from 'graphile-worker';
import type pg from 'pg';

/**
 * Forwards graphile-worker's log. Errors become warnings, because the worker retries by itself; failed jobs are logged
 * by `perform`.
 */
export function toWorkerLogger(logger: Pick<FastifyBaseLogger, 'debug' | 'warn'>): Logger {
  return new Logger(({ label, workerId }) => (level, message, meta) => {
    const isTrouble = ['error', 'warning'].includes(level) && meta?.['failure'] !== true;
    const facts = { label, workerId, err: meta?.['error'] };
    if (isTrouble) logger.warn(facts, `graphile-worker: ${message}`);
    else logger.debug(facts, `graphile-worker: ${message}`);
  });
}

type Connected = (
  error: Error | undefined,
  client: pg.PoolClient | undefined,
  release: pg.PoolClient['release'],
) => void;

/**
 * Wraps the pool so that a connection can be released twice. graphile-worker may do that when its listening connection
 * breaks, and pg's error would then end the process.
 */
export function doubleReleaseSafePool(pool: pg.Pool): pg.Pool {
  const connect = (connected?: Connected) =>
    connected === undefined
      ? pool.connect()
      : pool.connect((error, client, release) => connected(error, client, once(release)));
  return new Proxy(pool, {
    get(target, name) {
      if (name === 'connect') return connect;
      const value: unknown = Reflect.get(target, name);
      return typeof value === 'function' ? value.bind(target) : value;
    },
  });
}

function once(release: pg.PoolClient['release']): pg.PoolClient['release'] {
  let isReleased = false;
  return (error) => {
    if (isReleased) return;
    isReleased = true;
    release(error);
  };
}

/**
 * Reports an error of the first fetch of a job. graphile-worker reads the ids of its tasks with that fetch and caches
 * the result even if the read failed, so such a runner would never run a job. It must be stopped and started again.
 */
export function watchFirstFetch(onError: (error: unknown) => void): WorkerEvents {
  const events: WorkerEvents = new EventEmitter();
  let isOver = false;
  const succeeded = () => {
    isOver = true;
  };
  events.once('job:start', succeeded);
  events.once('worker:getJob:empty', succeeded);
  events.on('worker:getJob:error', ({ error }) => {
    if (isOver) return;
    isOver = true;
    onError(error);
  });
  return events;
}
