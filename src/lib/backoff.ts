import { setTimeout as delay } from 'node:timers/promises';

export interface BackoffLimits {
  /** The maximum of the first delay. */
  minMs: number;
  /** The maximum of every delay. */
  maxMs: number;
}

/**
 * The delay after a number of consecutive failures: it doubles with each failure up to `maxMs`, minus a random part of
 * up to half.
 * @param failures at least 1
 */
export function backoffMs(failures: number, { minMs, maxMs }: BackoffLimits): number {
  return Math.min(maxMs, minMs * 2 ** (failures - 1)) * (1 - Math.random() / 2);
}

/** Delays between the attempts of work that is retried without end. */
export interface Backoff {
  /** The delay before the next attempt. Starts again at `minMs` if the last attempt ran for longer than `maxMs`. */
  nextMs(): number;
  /** Call this when an attempt has succeeded. */
  reset(): void;
}

export function createBackoff(limits: BackoffLimits): Backoff {
  let failures = 0;
  let resumedAtMs = performance.now();
  return {
    nextMs() {
      const nowMs = performance.now();
      failures = nowMs - resumedAtMs > limits.maxMs ? 1 : failures + 1;
      const delayMs = backoffMs(failures, limits);
      resumedAtMs = nowMs + delayMs;
      return delayMs;
    },
    reset() {
      failures = 0;
    },
  };
}

/** Waits for `ms`, or until the signal is aborted. Does not keep the process alive. */
export async function pause(ms: number, signal?: AbortSignal): Promise<void> {
  await delay(ms, undefined, { ref: false, ...(signal === undefined ? {} : { signal }) }).catch(() => undefined);
}
