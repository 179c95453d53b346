import { minuteMs } from './durations.ts';

interface WarningLogger {
  warn(facts: Record<string, unknown>, message: string): void;
}

/** Warnings of what may happen again and again, such as an outage: at most one within `everyMs`, by default a minute. */
export function limitedWarnings(logger: WarningLogger, everyMs = minuteMs): WarningLogger['warn'] {
  let lastAtMs = Number.NEGATIVE_INFINITY;
  return (facts, message) => {
    const nowMs = performance.now();
    if (nowMs - lastAtMs < everyMs) return;
    lastAtMs = nowMs;
    logger.warn(facts, message);
  };
}
