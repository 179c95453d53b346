import { minuteMs } from './durations.ts';

interface WarningLogger {
  warn(facts: Record<string, unknown>, message: string): void;
}

/** Logs repeated warnings, for example during an outage, at most once within `everyMs` (default: a minute). */
export function limitedWarnings(logger: WarningLogger, everyMs = minuteMs): WarningLogger['warn'] {
  let lastAtMs = Number.NEGATIVE_INFINITY;
  return (facts, message) => {
    const nowMs = performance.now();
    if (nowMs - lastAtMs < everyMs) return;
    lastAtMs = nowMs;
    logger.warn(facts, message);
  };
}
