import { LRUCache } from 'lru-cache';
import { Problem } from '../domain/errors.ts';
import { minuteMs } from '../lib/durations.ts';

/** Limits how often argon2id is tried for one row. */
export interface AttemptLimit {
  /**
   * Runs an attempt unless one for the same id is running or five have failed within a minute. @throws Problem
   * `overloaded`
   */
  run(id: string, attempt: () => Promise<boolean>): Promise<boolean>;
}

interface Attempts {
  running: boolean;
  failures: number;
  windowStartedMs: number;
}

const failuresAllowed = 5;
const windowMs = minuteMs;

/**
 * @param nowMs a monotonic clock in milliseconds
 * @param capacity the maximum number of ids; beyond it the least recently used one is dropped
 */
export function createAttemptLimit(nowMs: () => number = () => performance.now(), capacity = 10_000): AttemptLimit {
  const attemptsOf = new LRUCache<string, Attempts>({ max: capacity });
  return {
    async run(id, attempt) {
      const attempts = current(id);
      if (attempts.running || attempts.failures >= failuresAllowed) {
        throw new Problem('overloaded', 'This credential is being checked too often.', {
          headers: { 'retry-after': attempts.running ? '1' : String(windowMs / 1000) },
        });
      }
      attempts.running = true;
      try {
        const matches = await attempt();
        if (!matches) attempts.failures += 1;
        return matches;
      } finally {
        attempts.running = false;
      }
    },
  };

  function current(id: string): Attempts {
    const known = attemptsOf.get(id);
    if (known !== undefined && (known.running || nowMs() - known.windowStartedMs < windowMs)) return known;
    const fresh: Attempts = { running: false, failures: 0, windowStartedMs: nowMs() };
    attemptsOf.set(id, fresh);
    return fresh;
  }
}
