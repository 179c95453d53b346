import { pause } from './backoff.ts';

export interface PeriodicTask {
  /** Stops it, and waits for the run in progress. */
  close(): Promise<void>;
}

interface PeriodicTaskOptions {
  /** The signal is aborted when the task is closed. */
  run: (signal: AbortSignal) => unknown;
  /** Milliseconds from the end of a run to the beginning of the next; asked after each run where it is a function. */
  everyMs: number | (() => number);
  /** The first run begins at once, and not after an interval. */
  immediately?: boolean;
  /** Called with the error of a run; the next one comes all the same. Without it an error ends the process. */
  onError?: (error: unknown) => void;
}

/** Runs a function again and again until it is closed. Runs never overlap, and do not keep the process alive. */
export function startPeriodicTask({ run, everyMs, immediately, onError }: PeriodicTaskOptions): PeriodicTask {
  const closing = new AbortController();
  const { signal } = closing;
  const intervalMs = () => (typeof everyMs === 'number' ? everyMs : everyMs());

  async function loop(): Promise<void> {
    if (immediately !== true) await pause(intervalMs(), signal);
    while (!signal.aborted) {
      try {
        await run(signal);
      } catch (error) {
        if (onError === undefined) throw error;
        onError(error);
      }
      if (!signal.aborted) await pause(intervalMs(), signal);
    }
  }

  const running = loop();
  return {
    async close() {
      closing.abort();
      await running;
    },
  };
}
