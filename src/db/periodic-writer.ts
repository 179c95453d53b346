/** Writes what was gathered in memory, again and again, and what is left at the end. */
export interface PeriodicWriter {
  /** Writes all that was gathered before it is called. One at a time: what is gathered meanwhile goes with the next. */
  flush(): Promise<void>;
  /** Stops the timer and writes the rest. */
  close(): Promise<void>;
}

const writeEveryMs = 1_000;

/** @param write takes what waits, and keeps for later what it could not write; it does not throw */
export function createPeriodicWriter(options: {
  isWaiting: () => boolean;
  write: () => Promise<void>;
}): PeriodicWriter {
  const { isWaiting, write } = options;
  let writing: Promise<void> | undefined;

  function writeAlone(): Promise<void> {
    writing ??= write().finally(() => {
      writing = undefined;
    });
    return writing;
  }

  const timer = setInterval(() => {
    if (isWaiting()) void writeAlone();
  }, writeEveryMs).unref();
  return {
    async flush() {
      // What is on its way may have been taken before the last of it was gathered.
      await writing;
      await writeAlone();
    },
    async close() {
      clearInterval(timer);
      await writeAlone();
      if (isWaiting()) await writeAlone();
    },
  };
}
