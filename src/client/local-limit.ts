import type { RateLimitState } from './verdict.ts';

/** Of what is left of a limit this part may be let in before Latchkey is told: 16 backends cannot use it up between them. */
export const creditShare = 16;

interface Window {
  limit: number;
  windowSeconds: number;
  remaining: number;
  /** Monotonic milliseconds. */
  resetAtMs: number;
}

/** Two estimates of one window's end lie closer together than this: Latchkey tells it in whole seconds. */
const sameWindowMs = 1_000;

/** What is known here of one limit: what Latchkey said last, and what has been let in without it since. */
export class LocalLimit {
  /** Let in here, and not known to be counted there. */
  pending = 0;
  #window: Window | undefined;

  /** What Latchkey has counted. Within a window less can be left but not more; replies may overtake each other. */
  learn({ limit, windowSeconds, remaining, resetSeconds }: RateLimitState, nowMs: number): void {
    const resetAtMs = nowMs + resetSeconds * 1_000;
    const known = this.#window;
    const isSame =
      known?.limit === limit &&
      known.windowSeconds === windowSeconds &&
      Math.abs(known.resetAtMs - resetAtMs) <= sameWindowMs;
    if (isSame) known.remaining = Math.min(known.remaining, remaining);
    else this.#window = { limit, windowSeconds, remaining, resetAtMs };
  }

  get windowMs(): number {
    return (this.#window?.windowSeconds ?? 0) * 1_000;
  }

  /** Whether a window that nothing was used of has room for so much. */
  mayFit(cost: number): boolean {
    return this.#window === undefined || cost <= this.#window.limit;
  }

  /** Whether so much may be let in without asking. False where the window is over: how the next one stands is not known. */
  hasCredit(cost: number, nowMs: number): boolean {
    const window = this.#window;
    if (window === undefined) return true;
    return nowMs < window.resetAtMs && this.pending + cost <= window.remaining / creditShare;
  }

  /** The same while Latchkey cannot be asked: all that was left may be used, and a new window begins here. */
  hasRest(cost: number, nowMs: number): boolean {
    const window = this.#window;
    if (window === undefined) return true;
    if (nowMs >= window.resetAtMs) {
      window.remaining = window.limit + this.pending;
      window.resetAtMs = nowMs + window.windowSeconds * 1_000;
    }
    return this.pending + cost <= window.remaining;
  }

  /** Whether it was counted there is not known: as if it was. */
  assumeCounted(cost: number): void {
    this.pending -= cost;
    if (this.#window !== undefined) this.#window.remaining = Math.max(0, this.#window.remaining - cost);
  }

  state(policy: RateLimitState['policy'], nowMs: number): RateLimitState | undefined {
    const window = this.#window;
    if (window === undefined) return undefined;
    return {
      policy,
      limit: window.limit,
      windowSeconds: window.windowSeconds,
      remaining: Math.max(0, window.remaining - this.pending),
      resetSeconds: Math.max(1, Math.ceil((window.resetAtMs - nowMs) / 1_000)),
    };
  }
}
