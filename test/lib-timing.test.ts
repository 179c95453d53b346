import { setTimeout as delay, setImmediate as round } from 'node:timers/promises';
import { backoffMs, createBackoff, pause } from '../src/lib/backoff.ts';
import { abortable, within } from '../src/lib/deadline.ts';
import { createDeferred } from '../src/lib/deferred.ts';
import { createHealthSwitch } from '../src/lib/health-switch.ts';
import { startPeriodicTask } from '../src/lib/periodic-task.ts';
import { singleFlight } from '../src/lib/single-flight.ts';
import { eventually } from './support/process.ts';
import { t } from './support/tap.ts';

t.test('a deferred is settled from outside', async (t) => {
  const good = createDeferred<number>();
  good.resolve(1);
  t.equal(await good.promise, 1);
  const bad = createDeferred();
  bad.reject(new Error('no'));
  await t.rejects(bad.promise, { message: 'no' });
});

t.test('a single flight', async (t) => {
  function startFlight() {
    const runs: Array<{ key: string; result: ReturnType<typeof createDeferred<number>> }> = [];
    const flight = singleFlight<number, string>((key) => {
      const result = createDeferred<number>();
      runs.push({ key, result });
      return result.promise;
    });
    return { flight, runs };
  }

  t.test('a single flight is shared by all callers of a key, and ends with its result', async (t) => {
    const { flight, runs } = startFlight();
    const calls = [flight('a'), flight('a'), flight('b')];
    t.same(
      runs.map(({ key }) => key),
      ['a', 'b'],
    );
    runs[0]?.result.resolve(1);
    runs[1]?.result.resolve(2);
    t.same(await Promise.all(calls), [1, 1, 2]);
    void flight('a');
    t.equal(runs.length, 3, 'a later caller begins another run');
  });

  t.test('a single flight fails for all callers that share it, not for later callers', async (t) => {
    const { flight, runs } = startFlight();
    const calls = [flight('a'), flight('a')];
    runs[0]?.result.reject(new Error('no'));
    for (const call of calls) await t.rejects(call, { message: 'no' });
    const later = flight('a');
    runs[1]?.result.resolve(1);
    t.equal(await later, 1);
  });

  t.test('a forgotten flight is shared only by earlier callers', async (t) => {
    const { flight, runs } = startFlight();
    const immediate = flight('a');
    flight.forget('a');
    const second = flight('a');
    runs[0]?.result.resolve(1);
    t.equal(await immediate, 1);
    t.equal(flight('a'), second, 'the end of the forgotten run does not forget the later one');
    runs[1]?.result.resolve(2);
    t.equal(await second, 2);
  });

  t.test('next() begins one more run for all its callers', async (t) => {
    const { flight, runs } = startFlight();
    const first = flight.next('a');
    const next = [flight.next('a'), flight.next('a')];
    t.equal(runs.length, 1, 'a run begins at once if none is in progress, otherwise after it');
    runs[0]?.result.reject(new Error('no'));
    await t.rejects(first, { message: 'no' });
    await round();
    t.equal(runs.length, 2);
    runs[1]?.result.resolve(2);
    t.same(await Promise.all(next), [2, 2]);
    void flight.next('a');
    t.equal(runs.length, 3);
  });
});

t.test('delays double up to the cap, minus a random part of at most half', async (t) => {
  const limits = { minMs: 100, maxMs: 1_000 };
  for (const [failures, fullMs] of [
    [1, 100],
    [2, 200],
    [4, 800],
    [5, 1_000],
    [2_000, 1_000],
  ] as const) {
    const delays = Array.from({ length: 100 }, () => backoffMs(failures, limits));
    t.ok(
      delays.every((ms) => ms > fullMs / 2 - 1 && ms <= fullMs),
      `after ${failures} failures`,
    );
    t.ok(new Set(delays).size > 50, 'they differ');
  }
});

t.test('a backoff restarts after a reset, and after a long successful attempt', async (t) => {
  const backoff = createBackoff({ minMs: 8, maxMs: 64 });
  const delays = Array.from({ length: 10 }, () => backoff.nextMs());
  t.ok((delays[0] ?? 0) <= 8);
  t.ok((delays[9] ?? 0) >= 32);
  backoff.reset();
  t.ok(backoff.nextMs() <= 8);
  for (let call = 0; call < 10; call++) backoff.nextMs();
  await delay(150);
  t.ok(backoff.nextMs() <= 8);
});

t.test('a pause ends early when its signal is aborted', async (t) => {
  const closing = new AbortController();
  const startedAtMs = performance.now();
  const paused = pause(60_000, closing.signal);
  closing.abort();
  await paused;
  await pause(60_000, closing.signal);
  t.ok(performance.now() - startedAtMs < 10_000);
});

t.test('within() ends with the work, or with the given error after the time limit', async (t) => {
  t.equal(await within(60_000, Promise.resolve(1), () => 2), 1);
  await t.rejects(
    within(60_000, Promise.reject(new Error('own')), () => 2),
    { message: 'own' },
  );
  const slow = createDeferred<number>();
  t.equal(await within(1, slow.promise, () => 2), 2);
  const second = within(1, slow.promise, () => {
    throw new Error('late');
  });
  await t.rejects(second, { message: 'late' });
});

t.test('abortable() ends with the work, or with the reason of its signal', async (t) => {
  const stop = new AbortController();
  t.equal(await abortable(Promise.resolve(1), stop.signal), 1);
  await t.rejects(abortable(Promise.reject(new Error('own')), stop.signal), { message: 'own' });
  const waiting = abortable(createDeferred().promise, stop.signal);
  stop.abort(new Error('stopped'));
  await t.rejects(waiting, { message: 'stopped' });
  await t.rejects(abortable(createDeferred().promise, stop.signal), { message: 'stopped' });
});

t.test('a periodic task', async (t) => {
  t.test('a periodic task runs again and again without overlap, also after an error', async (t) => {
    const errors: unknown[] = [];
    let [runs, underWay, mostUnderWay] = [0, 0, 0];
    const task = startPeriodicTask({
      everyMs: 1,
      async run() {
        underWay += 1;
        mostUnderWay = Math.max(mostUnderWay, underWay);
        await delay(5);
        underWay -= 1;
        runs += 1;
        if (runs === 2) throw new Error('no');
      },
      onError: (error) => errors.push(error),
    });
    t.teardown(() => task.close());
    t.equal(runs, 0);
    await eventually(async () => runs >= 4);
    t.equal(mostUnderWay, 1);
    t.match(errors, [{ message: 'no' }]);
    t.equal(errors.length, 1);
  });

  t.test('a task closed during its interval ends at once and begins no other run', async (t) => {
    let runs = 0;
    const run = () => {
      runs += 1;
    };
    const [immediate, second] = [
      startPeriodicTask({ everyMs: 60_000, run, immediately: true }),
      startPeriodicTask({ everyMs: 60_000, run }),
    ];
    await Promise.all([immediate.close(), second.close()]);
    t.equal(runs, 1, 'the task that runs immediately has run');
  });

  t.test('closing aborts the run in progress and waits for it', async (t) => {
    let hasEnded = false;
    const task = startPeriodicTask({
      everyMs: () => 1,
      immediately: true,
      async run(signal) {
        await pause(60_000, signal);
        await round();
        hasEnded = true;
      },
    });
    await task.close();
    t.equal(hasEnded, true);
  });
});

t.test('a health switch reports changes only', async (t) => {
  const reports: unknown[] = [];
  const report = (isHealthy: boolean, cause?: unknown) => reports.push([isHealthy, cause]);
  const unknown = createHealthSwitch(report);
  t.equal(unknown.isHealthy, undefined);
  unknown.set(true);
  unknown.set(true);
  unknown.set(false, 'first');
  unknown.set(false, 'second');
  t.equal(unknown.isHealthy, false);
  const healthy = createHealthSwitch(report, true);
  healthy.set(true);
  healthy.set(false, 'third');
  t.same(reports, [
    [true, undefined],
    [false, 'first'],
    [false, 'third'],
  ]);
});
