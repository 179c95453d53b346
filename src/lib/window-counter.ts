import { LRUCache } from 'lru-cache';

/** The count of a name in its current window. */
export interface WindowCount {
  used: number;
  /** Whole seconds until the window ends: at least 1, never more than the window. */
  resetSeconds: number;
}

interface WindowCounterOptions {
  windowSeconds: number;
  /** The maximum number of names. The least recently counted one is dropped. */
  capacity: number;
}

/** Counts by name in windows that start with their first count, with a monotonic clock. @returns adds a count */
export function createWindowCounter({ windowSeconds, capacity }: WindowCounterOptions): (name: string) => WindowCount {
  // `max` would allocate memory for all names at once.
  const windows = new LRUCache<string, { used: number; endsAtMs: number }>({
    maxSize: capacity,
    sizeCalculation: () => 1,
  });
  return (name) => {
    const nowMs = performance.now();
    let window = windows.get(name);
    if (window === undefined || window.endsAtMs <= nowMs) {
      window = { used: 0, endsAtMs: nowMs + windowSeconds * 1_000 };
      windows.set(name, window);
    }
    window.used += 1;
    const leftSeconds = Math.ceil((window.endsAtMs - nowMs) / 1_000);
    return { used: window.used, resetSeconds: Math.min(windowSeconds, Math.max(1, leftSeconds)) };
  };
}
