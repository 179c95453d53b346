import type { Logger } from 'pino';
import { within } from '../lib/deadline.ts';

/** A step of the end. */
export interface Phase {
  /** For the log. */
  name: string;
  /** Past this the next phase begins, and what this one has left goes with the process. */
  timeoutMs: number;
  run: () => Promise<unknown>;
}

/** What has to be ended, gathered while it is started. */
export interface Shutdown {
  /** Ended before all that was added earlier, because it may use that; several that are given together end side by side. */
  add(...phases: Phase[]): void;
  /**
   * Ends everything, in the reverse order.
   * @returns the names of the phases that failed or did not end in time
   */
  run(): Promise<string[]>;
}

export function createShutdown(logger: Pick<Logger, 'debug' | 'error'>): Shutdown {
  const steps: Phase[][] = [];

  async function endsInOrder({ name, timeoutMs, run }: Phase): Promise<boolean> {
    const startedAtMs = performance.now();
    try {
      const hasEnded = await within(
        timeoutMs,
        run().then(() => true),
        () => false,
      );
      const facts = { phase: name, durationMs: Math.round(performance.now() - startedAtMs) };
      if (hasEnded) logger.debug(facts, 'A phase of the shutdown has ended.');
      else logger.error(facts, 'A phase of the shutdown did not end in time.');
      return hasEnded;
    } catch (err) {
      logger.error({ err, phase: name }, 'A phase of the shutdown has failed.');
      return false;
    }
  }

  return {
    add: (...phases) => void steps.unshift(phases),
    async run() {
      const failed: string[] = [];
      for (const phases of steps.splice(0)) {
        const ended = await Promise.all(phases.map(endsInOrder));
        failed.push(...phases.filter((_, index) => ended[index] !== true).map(({ name }) => name));
      }
      return failed;
    },
  };
}
