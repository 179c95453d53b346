import { setTimeout as delay } from 'node:timers/promises';

/** The result of `work`, or what `late` returns or throws if `work` takes longer. `work` itself goes on. */
export async function within<Result, Late>(
  ms: number,
  work: Promise<Result>,
  late: () => Late,
): Promise<Result | Late> {
  const over = new AbortController();
  try {
    return await Promise.race([work, delay(ms, undefined, { signal: over.signal }).then(late)]);
  } finally {
    over.abort();
  }
}

/** The result of `work`, or the signal's reason, thrown as soon as it is aborted. `work` itself goes on. */
export function abortable<Result>(work: Promise<Result>, signal: AbortSignal): Promise<Result> {
  return new Promise((resolve, reject) => {
    const giveUp = () => reject(signal.reason);
    if (signal.aborted) giveUp();
    signal.addEventListener('abort', giveUp, { once: true });
    // The listener is removed with the work, so that a long-lived signal keeps no reference to it.
    work.then(resolve, reject).finally(() => signal.removeEventListener('abort', giveUp));
  });
}
