/**
 * A value that is usually at hand and sometimes has to be awaited. A rule over such values is written once; where everything
 * is in memory, it runs without promises, which would take longer than a verification.
 */
export type MaybePromise<Value> = Value | Promise<Value>;

/** Goes on with a value: at once where it is at hand. */
export function andThen<Value, Result>(
  value: MaybePromise<Value>,
  next: (value: Value) => MaybePromise<Result>,
): MaybePromise<Result> {
  return value instanceof Promise ? value.then(next) : next(value);
}

/** Runs, and handles what is thrown or rejected. */
export function withCatch<Value>(
  run: () => MaybePromise<Value>,
  onError: (error: unknown) => MaybePromise<Value>,
): MaybePromise<Value> {
  try {
    const value = run();
    return value instanceof Promise ? value.catch(onError) : value;
  } catch (error) {
    return onError(error);
  }
}

/** Runs, and calls `done` once at the end, as a hook of Fastify does. */
export function callBack(run: () => MaybePromise<unknown>, done: (error?: Error) => void): void {
  let result: MaybePromise<unknown>;
  try {
    result = run();
  } catch (error) {
    done(error as Error);
    return;
  }
  if (result instanceof Promise) result.then(() => done(), done);
  else done();
}
