/** Writes what was gathered in memory, again and again, and what is left at the end. */
export interface PeriodicWriter {
  /** One at a time: what is gathered meanwhile goes with the next. */
  flush(): Promise<void>;
  /** Stops the timer and writes the rest. */
  close(): Promise<void>;
}

const flushEveryMs = 1_000;

/** @param write takes what waits, and keeps for later what it could not write; it does not throw */
export function createPeriodicWriter(options: {
  isWaiting: () => boolean;
  write: () => Promise<void>;
}): PeriodicWriter {
  const { isWaiting, write } = options;
  let flushing: Promise<void> | undefined;

  function flush(): Promise<void> {
    flushing ??= write().finally(() => {
      flushing = undefined;
    });
    return flushing;
  }

  const timer = setInterval(() => {
    if (isWaiting()) void flush();
  }, flushEveryMs).unref();
  return {
    flush,
    async close() {
      clearInterval(timer);
      await flush();
      if (isWaiting()) await flush();
    },
  };
}
