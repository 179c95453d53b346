import { setTimeout as delay } from 'node:timers/promises';

export interface BackoffLimits {
  /** The first delay at most. */
  leastMs: number;
  /** Every delay at most. */
  mostMs: number;
}

/**
 * The delay after so many failures in a row: it doubles with each up to the cap, and a random part of up to half is
 * taken off.
 * @param failures from 1
 */
export function backoffMs(failures: number, { leastMs, mostMs }: BackoffLimits): number {
  return Math.min(mostMs, leastMs * 2 ** (failures - 1)) * (1 - Math.random() / 2);
}

/** Delays between the attempts of work that goes on for as long as it can. */
export interface Backoff {
  /** The delay before the next attempt. The least one again where the last attempt went well for longer than the cap. */
  nextMs(): number;
  /** The last attempt went well. */
  reset(): void;
}

export function createBackoff(limits: BackoffLimits): Backoff {
  let failures = 0;
  let resumedAtMs = performance.now();
  return {
    nextMs() {
      const nowMs = performance.now();
      failures = nowMs - resumedAtMs > limits.mostMs ? 1 : failures + 1;
      const delayMs = backoffMs(failures, limits);
      resumedAtMs = nowMs + delayMs;
      return delayMs;
    },
    reset() {
      failures = 0;
    },
  };
}

/** Waits so long, or until the signal is aborted. It does not keep the process alive. */
export async function pause(ms: number, signal?: AbortSignal): Promise<void> {
  await delay(ms, undefined, { ref: false, ...(signal === undefined ? {} : { signal }) }).catch(() => undefined);
}
