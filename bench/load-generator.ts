import { fork } from 'node:child_process';
import { once } from 'node:events';
import path from 'node:path';
import type { Question } from './request-templates.ts';

export interface LoadJob {
  port: number;
  question: Question;
  connections: number;
  /** At most; an `once` order ends sooner. */
  seconds: number;
  /** The name of keys that the worker was given. */
  keySet: string;
  /** `around`: one after the other, again and again; `once`: each one time; `zipf`: by Zipf's law. */
  order: 'around' | 'once' | 'zipf';
  /** The part of the set that is used. */
  from?: number;
  to?: number;
  /** The number of prepared requests, which are repeated. Default: 65,536. */
  inRow?: number;
  /** Requests per second. Default: as many as the connections can carry. */
  requestsASecond?: number;
}

export interface LoadResult {
  answers: number;
  /** Answers that were not what was expected. */
  wrong: number;
  seconds: number;
  p50Ms: number;
  p99Ms: number;
}

export type WorkerMessage = { name: string; keys: string[] } | { job: LoadJob };

/** A process that asks. */
export interface Load {
  give(name: string, keys: string[]): void;
  run(job: LoadJob): Promise<LoadResult>;
  stop(): void;
}

export function startLoad(): Load {
  const worker = fork(path.join(import.meta.dirname, 'load-generator-worker.ts'), { serialization: 'advanced' });
  const died = once(worker, 'exit').then(() => Promise.reject(new Error('the process that asks has ended')));
  died.catch(() => undefined);
  return {
    give: (name, keys) => void worker.send({ name, keys } satisfies WorkerMessage),
    async run(job) {
      worker.send({ job } satisfies WorkerMessage);
      const [result] = await Promise.race([once(worker, 'message'), died]);
      return result as LoadResult;
    },
    stop: () => void worker.kill('SIGTERM'),
  };
}
