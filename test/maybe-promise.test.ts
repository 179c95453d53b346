import { andThen, callBack, withCatch } from '../src/lib/maybe-promise.ts';
import { t } from './support/tap.ts';

const throwError = (): never => {
  throw new Error('it failed');
};

t.test('a value is passed on synchronously, a promise when it resolves', async (t) => {
  t.equal(
    andThen(1, (value) => value + 1),
    2,
  );
  t.equal(await andThen(Promise.resolve(1), (value) => value + 1), 2);
  t.throws(() => andThen(1, throwError), /it failed/);
  await t.rejects(Promise.resolve(andThen(Promise.resolve(1), throwError)), /it failed/);
});

t.test('an error is handled whether thrown or rejected', async (t) => {
  const message = (error: unknown) => (error as Error).message;
  t.equal(withCatch<string>(throwError, message), 'it failed');
  t.equal(await withCatch<string>(() => Promise.reject(new Error('later')), message), 'later');
  t.equal(
    withCatch(() => 'well', message),
    'well',
  );
});

t.test('a callback is called once, and its own errors are not passed to it', async (t) => {
  const calls: unknown[] = [];
  callBack(
    () => 1,
    (error) => void calls.push(error),
  );
  callBack(throwError, (error) => void calls.push(error?.message));
  t.same(calls, [undefined, 'it failed']);
  await new Promise<void>((resolve) =>
    callBack(
      async () => 1,
      (error) => resolve(t.equal(error, undefined) as never),
    ),
  );
  await new Promise<void>((resolve) =>
    callBack(
      async () => throwError(),
      (error) => resolve(void t.match(error, { message: 'it failed' })),
    ),
  );
  let called = 0;
  t.throws(
    () =>
      callBack(
        () => 1,
        () => {
          called += 1;
          throwError();
        },
      ),
    /it failed/,
  );
  t.equal(called, 1);
});
