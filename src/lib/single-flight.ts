/** Runs a function once at a time for each key. */
export interface SingleFlight<Key, Result> {
  /** Shares the current run, or starts one. */
  (key: Key): Promise<Result>;
  /** Shares a run that starts after this call: at once, or when the current run has ended. */
  next(key: Key): Promise<Result>;
  /** Later callers do not share the current run, for example because its source has changed. */
  forget(key: Key): void;
}

/** Without a key, all callers share one run. */
export function singleFlight<Result, Key = void>(run: (key: Key) => Promise<Result>): SingleFlight<Key, Result> {
  const running = new Map<Key, Promise<Result>>();
  const queued = new Map<Key, Promise<Result>>();

  function share(key: Key): Promise<Result> {
    const present = running.get(key);
    if (present !== undefined) return present;
    const started = run(key).finally(() => {
      if (running.get(key) === started) running.delete(key);
    });
    running.set(key, started);
    return started;
  }

  function next(key: Key): Promise<Result> {
    const present = running.get(key);
    if (present === undefined) return share(key);
    const begin = () => {
      queued.delete(key);
      return share(key);
    };
    const started = queued.get(key) ?? present.then(begin, begin);
    queued.set(key, started);
    return started;
  }

  return Object.assign(share, { next, forget: (key: Key) => void running.delete(key) });
}
