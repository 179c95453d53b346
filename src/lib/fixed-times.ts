import { setTimeout as delay } from 'node:timers/promises';

/**
 * Runs a function and settles with its outcome at the first multiple of `stepMs` at which it has one. So the time does not show
 * what the function did, as long as that takes less than a step.
 */
export async function atFixedTimes<Result>(stepMs: number, act: () => Promise<Result>): Promise<Result> {
  // The timer starts before the work, so that the work does not shift it.
  let tick = delay(stepMs);
  let outcome: PromiseSettledResult<Result> | undefined;
  void Promise.allSettled([act()]).then(([settled]) => {
    outcome = settled;
  });
  await tick;
  while (outcome === undefined) {
    tick = delay(stepMs);
    await tick;
  }
  if (outcome.status === 'rejected') throw outcome.reason;
  return outcome.value;
}
