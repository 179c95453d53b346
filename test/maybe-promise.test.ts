import { andThen, callBack, withCatch } from '../src/lib/maybe-promise.ts';
import { t } from './support/tap.ts';

const fail = (): never => {
  throw new Error('it failed');
};

t.test('a value at hand goes on at once, a promise when it is there', async (t) => {
  t.equal(
    andThen(1, (value) => value + 1),
    2,
  );
  t.equal(await andThen(Promise.resolve(1), (value) => value + 1), 2);
  t.throws(() => andThen(1, fail), /it failed/);
  await t.rejects(Promise.resolve(andThen(Promise.resolve(1), fail)), /it failed/);
});

t.test('an error is handled, thrown or rejected', async (t) => {
  const message = (error: unknown) => (error as Error).message;
  t.equal(withCatch<string>(fail, message), 'it failed');
  t.equal(await withCatch<string>(() => Promise.reject(new Error('later')), message), 'later');
  t.equal(
    withCatch(() => 'well', message),
    'well',
  );
});

t.test('a callback is called once, and its own errors are not handed to it', async (t) => {
  const calls: unknown[] = [];
  callBack(
    () => 1,
    (error) => void calls.push(error),
  );
  callBack(fail, (error) => void calls.push(error?.message));
  t.same(calls, [undefined, 'it failed']);
  await new Promise<void>((resolve) =>
    callBack(
      async () => 1,
      (error) => resolve(t.equal(error, undefined) as never),
    ),
  );
  await new Promise<void>((resolve) =>
    callBack(
      async () => fail(),
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
          fail();
        },
      ),
    /it failed/,
  );
  t.equal(called, 1);
});
