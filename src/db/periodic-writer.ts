/** Writes what was gathered in memory, again and again, and what is left at the end. */
export interface PeriodicWriter {
  /** Writes all that waits. One at a time: what is gathered meanwhile goes with the next. */
  flush(): Promise<void>;
  /** Stops the timer and writes the rest. */
  close(): Promise<void>;
}

/** `due`: each second, and may leave to the next second what can wait. */
export type Extent = 'due' | 'all';

const writeEveryMs = 1_000;

/** @param write takes what waits, and keeps for later what it could not write; it does not throw */
export function createPeriodicWriter(options: {
  isWaiting: () => boolean;
  write: (extent: Extent) => Promise<void>;
}): PeriodicWriter {
  const { isWaiting, write } = options;
  let running: { extent: Extent; written: Promise<void> } | undefined;

  function start(extent: Extent): Promise<void> {
    const written = write(extent).finally(() => {
      running = undefined;
    });
    running = { extent, written };
    return written;
  }

  async function flush(): Promise<void> {
    if (running?.extent === 'due') await running.written;
    await (running?.written ?? start('all'));
  }

  const timer = setInterval(() => {
    if (isWaiting() && running === undefined) void start('due');
  }, writeEveryMs).unref();
  return {
    flush,
    async close() {
      clearInterval(timer);
      await (running?.written ?? flush());
      if (isWaiting()) await flush();
    },
  };
}
