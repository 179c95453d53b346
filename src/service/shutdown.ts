import type { Logger } from 'pino';
import { within } from '../lib/deadline.ts';

/** A step of the shutdown. */
export interface Phase {
  /** For the log. */
  name: string;
  /** After this time the next phase begins. What this phase has not finished ends with the process. */
  timeoutMs: number;
  run: () => Promise<unknown>;
}

/**
 * How long each phase may take. The phases that run one after the other take less than 10 s together, with a drain of 1
 * s; an embedded Postgres takes its time on top.
 */
const phaseTimeoutsMs = {
  requests: 4_200,
  jobs: 4_200,
  webhooks: 4_200,
  metrics: 300,
  usage: 3_000,
  checkpoints: 1_900,
  traces: 450,
  database: 400,
  postgres: 5_000,
};

export function phase(name: keyof typeof phaseTimeoutsMs, run: () => Promise<unknown>): Phase {
  return { name, timeoutMs: phaseTimeoutsMs[name], run };
}

/** Collects what must be closed while the service starts. */
export interface Shutdown {
  /** Added phases run before those added earlier, which they may use. Phases added together run side by side. */
  add(...phases: Phase[]): void;
  /**
   * Runs all phases, the latest first.
   * @returns the names of the phases that failed or did not end in time
   */
  run(): Promise<string[]>;
}

export function createShutdown(logger: Pick<Logger, 'debug' | 'error'>): Shutdown {
  const steps: Phase[][] = [];

  async function endsInTime({ name, timeoutMs, run }: Phase): Promise<boolean> {
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
        const ended = await Promise.all(phases.map(endsInTime));
        failed.push(...phases.filter((_, index) => ended[index] !== true).map(({ name }) => name));
      }
      return failed;
    },
  };
}
