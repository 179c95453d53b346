import argon2 from 'argon2';
import pLimit from 'p-limit';
import { Problem } from '../domain/errors.ts';
import type { Secret } from './secret.ts';

/** The cost of argon2id (RFC 9106) and how many runs are allowed. */
export interface SecretHasherOptions {
  memoryKib: number;
  timeCost: number;
  parallelism: number;
  /** The maximum number of runs at once. A caller that disconnects does not free its run. */
  concurrency: number;
  /** The maximum number of waiting runs; further ones are rejected with `overloaded`. */
  queueLimit: number;
}

export interface SecretHasher {
  /** @throws Problem `overloaded` */
  hash(secret: Secret): Promise<string>;
  /** A hash above the maximum cost is no match, and argon2id does not run. @throws Problem `overloaded` */
  verify(hash: string, secret: Secret): Promise<boolean>;
  /** The number of argon2id runs so far. Tests use it to show that wrong keys cause none. */
  readonly runs: number;
  readonly queued: number;
}

/** The maximum cost of a stored hash: one that an attacker wrote to the database must not cause more work. */
const ceiling = { memoryKib: 65_536, timeCost: 10, parallelism: 4 };

export function createSecretHasher(options: SecretHasherOptions): SecretHasher {
  const limit = pLimit(options.concurrency);
  let runs = 0;
  const queue = <Result>(work: () => Promise<Result>): Promise<Result> => {
    if (limit.activeCount + limit.pendingCount >= options.concurrency + options.queueLimit) {
      throw new Problem('overloaded', 'Too many keys are being hashed at once.', { headers: { 'retry-after': '1' } });
    }
    return limit(() => {
      runs += 1;
      return work();
    });
  };
  return {
    hash: async (secret) =>
      queue(() =>
        argon2.hash(secret.reveal(), {
          type: argon2.argon2id,
          memoryCost: options.memoryKib,
          timeCost: options.timeCost,
          parallelism: options.parallelism,
        }),
      ),
    verify: async (hash, secret) => isAffordable(hash) && queue(() => argon2.verify(hash, secret.reveal())),
    get runs() {
      return runs;
    },
    get queued() {
      return limit.pendingCount;
    },
  };
}

/** The PHC string format: `$argon2id$v=19$m=…,t=…,p=…$salt$hash`, with the three parameters in any order. */
function isAffordable(hash: string): boolean {
  const [, costs] = /^\$argon2id\$v=19\$([mtp]=\d{1,10},[mtp]=\d{1,10},[mtp]=\d{1,10})\$/.exec(hash) ?? [];
  if (costs === undefined) return false;
  const cost = Object.fromEntries(costs.split(',').map((part) => [part[0], Number(part.slice(2))]));
  const { m, t, p } = cost;
  if (m === undefined || t === undefined || p === undefined) return false;
  return m <= ceiling.memoryKib && t <= ceiling.timeCost && p <= ceiling.parallelism;
}
