import { pause } from './backoff.ts';

export interface PeriodicTask {
  /** Stops the task and waits for the current run. */
  close(): Promise<void>;
}

interface PeriodicTaskOptions {
  /** The signal is aborted when the task is closed. */
  run: (signal: AbortSignal) => unknown;
  /** Milliseconds from the end of a run to the start of the next one. A function is called after each run. */
  everyMs: number | (() => number);
  /** The first run starts at once, not after an interval. */
  immediately?: boolean;
  /** Called with the error of a run; the next run follows anyway. Without it, an error ends the process. */
  onError?: (error: unknown) => void;
}

/** Runs a function periodically until it is closed. Runs never overlap, and do not keep the process alive. */
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
