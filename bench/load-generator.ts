import { fork } from 'node:child_process';
import { once } from 'node:events';
import path from 'node:path';
import type { RequestTemplate } from './request-templates.ts';

export interface LoadJob {
  port: number;
  template: RequestTemplate;
  connections: number;
  /** The maximum; with the order `once` the job ends when all keys were sent. */
  seconds: number;
  /** A name that was passed to `setKeys`. */
  keySet: string;
  /** `cyclic`: all keys in turn, repeatedly; `once`: each key once; `zipf`: random keys by Zipf's law. */
  order: 'cyclic' | 'once' | 'zipf';
  /** Index of the first key that is used. Default: 0. */
  from?: number;
  /** Index after the last key that is used. Default: the size of the set. */
  to?: number;
  /** The number of prepared requests, which are repeated. Default: 65,536. */
  preparedRequests?: number;
  /** Default: as many as the connections can carry. */
  requestsPerSecond?: number;
}

export interface LoadResult {
  responses: number;
  /** Responses that do not match the template. */
  unexpected: number;
  seconds: number;
  p50Ms: number;
  p99Ms: number;
}

export type WorkerMessage = { name: string; keys: string[] } | { job: LoadJob };

/** A separate process that sends requests and measures the response times. */
export interface LoadGenerator {
  setKeys(name: string, keys: string[]): void;
  run(job: LoadJob): Promise<LoadResult>;
  stop(): void;
}

export function startLoadGenerator(): LoadGenerator {
  const worker = fork(path.join(import.meta.dirname, 'load-generator-worker.ts'), { serialization: 'advanced' });
  const exited = once(worker, 'exit').then(() => Promise.reject(new Error('the load generator has exited')));
  exited.catch(() => undefined);
  return {
    setKeys: (name, keys) => void worker.send({ name, keys } satisfies WorkerMessage),
    async run(job) {
      worker.send({ job } satisfies WorkerMessage);
      const [result] = await Promise.race([once(worker, 'message'), exited]);
      return result as LoadResult;
    },
    stop: () => void worker.kill('SIGTERM'),
  };
}
