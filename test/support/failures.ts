import type { Test } from 'tap';
import type { Failure } from '../../bench/failures/failures.ts';
import type { Installation } from '../../bench/failures/parts.ts';
import { type PhaseResult, runFailures } from '../../bench/failures/run.ts';

/**
 * Runs a few failures under little load, and asserts that every promise is kept.
 * @param outageMs how long a part is away
 * @returns what was seen during each failure
 */
export async function keepsPromises<Started extends Installation>(
  t: Test,
  parts: Started,
  failures: readonly Failure<Started>[],
  outageMs: number,
): Promise<PhaseResult[]> {
  const { phases, broken, acknowledged, replays } = await runFailures(t, parts, failures, {
    load: { verifiers: 2, writers: 2, followers: 2, pauseMs: { verifiers: 20, writers: 50 } },
    outageMs,
    settleMs: 1_000,
    recoveryLimitMs: 20_000,
    log: (line) => t.comment(line),
  });
  t.same(broken, []);
  t.ok(acknowledged > 40 && replays > 0, `${acknowledged} acknowledged changes, ${replays} repeated requests`);
  for (const { name, statuses } of phases) {
    t.ok((statuses.verify['200'] ?? 0) > 10, `${name}: keys were verified`);
  }
  return phases;
}
