/**
 * A value that is usually available and sometimes must be awaited. A rule over such values is written once, and runs
 * without promises if everything is in memory (ADR 28).
 */
export type MaybePromise<Value> = Value | Promise<Value>;

/** Continues with a value: at once if it is available. */
export function andThen<Value, Result>(
  value: MaybePromise<Value>,
  next: (value: Value) => MaybePromise<Result>,
): MaybePromise<Result> {
  return value instanceof Promise ? value.then(next) : next(value);
}

/** Runs a function and handles an error or rejection. */
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

/**
 * Runs a function and calls `done` once at the end, like a Fastify hook. Whatever is thrown arrives as an Error, because
 * frameworks take other values, such as null, for success.
 */
export function callBack(run: () => MaybePromise<unknown>, done: (error?: Error) => void): void {
  const fail = (error: unknown) => done(error instanceof Error ? error : new Error(String(error)));
  let result: MaybePromise<unknown>;
  try {
    result = run();
  } catch (error) {
    fail(error);
    return;
  }
  if (result instanceof Promise) result.then(() => done(), fail);
  else done();
}
