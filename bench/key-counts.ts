import { setTimeout as delay } from 'node:timers/promises';
import type { LoadGenerator } from './load-generator.ts';
import { type Row, type TargetResult, toRow } from './report.ts';
import type { RequestTemplate } from './request-templates.ts';
import { mergeResults, type Scenario, type ScenarioResult, takeSample } from './sampling.ts';
import { connections, firstKey } from './scenarios.ts';
import type { Server } from './servers.ts';
import type { Testbed } from './testbed.ts';

const names = { one: 'verify, 1 key, sustained load', all: 'verify, all keys (Zipf), sustained load' } as const;

export interface KeyCountOptions {
  /** Pairs of processes; several, because two processes of the same program differ. */
  pairs: number;
  /** The duration of one sample; long enough to include the writing of usage. */
  seconds: number;
  /** The load with one key before its first sample. */
  oneKeyWarmUpSeconds: number;
  /** The load with all keys before their first sample, until usage is written as fast as it is counted. */
  allKeysWarmUpSeconds: number;
}

interface Setup {
  testbed: Testbed;
  generator: LoadGenerator;
  template: RequestTemplate;
}

/**
 * Compares one key with all keys under sustained load. Each process pays for its own writing of usage: the process with
 * all keys has stopped, and so has written its usage, before the second sample with one key.
 */
export async function compareKeyCounts(setup: Setup, { pairs, ...options }: KeyCountOptions): Promise<Row[]> {
  const results: Array<{ one: ScenarioResult; all: ScenarioResult }> = [];
  for (let pair = 0; pair < pairs; pair++) results.push(await comparePair(setup, options));
  const one = mergeResults(results.map((result) => result.one));
  const all = mergeResults(results.map((result) => result.all));
  return [toRow(one, one), toRow(all, one)];
}

async function comparePair(
  { testbed, generator, template }: Setup,
  { seconds, oneKeyWarmUpSeconds, allKeysWarmUpSeconds }: Omit<KeyCountOptions, 'pairs'>,
): Promise<{ one: ScenarioResult; all: ScenarioResult }> {
  const scenario = (
    name: string,
    server: Server,
    keys: typeof firstKey | { keySet: 'valid'; order: 'zipf' },
  ): Scenario => {
    return { name, server, job: () => ({ template, connections, preparedRequests, ...keys }) };
  };
  const one = scenario(names.one, await testbed.startLatchkey(), firstKey);
  const all = scenario(names.all, await testbed.startLatchkey(), { keySet: 'valid', order: 'zipf' });
  const warmUp = ({ server, job }: Scenario, seconds: number) =>
    generator.run({ ...job(0), port: server.port, seconds }).then(() => undefined);
  try {
    await generator.run({ ...all.job(0), port: all.server.port, order: 'once', seconds: 60 });
    await delay(usageWrittenWithinMs);
    await warmUp(one, oneKeyWarmUpSeconds);
    const first = await takeSample(generator, one, { round: 0, seconds });
    for (let run = 0; run < allKeysWarmUpRuns; run++) await warmUp(all, allKeysWarmUpSeconds / allKeysWarmUpRuns);
    const before = await all.server.stats();
    const samples = [
      await takeSample(generator, all, { round: 0, seconds }),
      await takeSample(generator, all, { round: 1, seconds }),
    ];
    const after = await all.server.stats();
    await all.server.stop();
    await warmUp(one, afterIdleSeconds);
    const second = await takeSample(generator, one, { round: 1, seconds });
    const { rssBytes } = await one.server.stats();
    return {
      one: { name: names.one, samples: [first, second], rssBeforeBytes: rssBytes, rssAfterBytes: rssBytes },
      all: { name: names.all, samples, rssBeforeBytes: before.rssBytes, rssAfterBytes: after.rssBytes },
    };
  } finally {
    await Promise.all([one.server.stop(), all.server.stop()]);
  }
}

/** Usage is written every five seconds. */
const usageWrittenWithinMs = 7_000;
/** Each run draws new random keys. Repeated keys would share their rows of usage, so less would be written. */
const allKeysWarmUpRuns = 3;
/** More than one run sends, so that no prepared request repeats. */
const preparedRequests = 2 ** 19;
const afterIdleSeconds = 1;
const minimumRatio = 0.75;

export function checkKeyCountTarget(rows: readonly Row[]): TargetResult {
  const row = rows.find(({ name }) => name === names.all);
  if (row === undefined) throw new Error('all keys were not measured');
  return {
    target: `all keys: at least ${minimumRatio} of the requests per second with one key`,
    isMet: row.ratio >= minimumRatio,
    measured: `${row.ratio.toFixed(2)} (by processor time ${row.cpuRatio.toFixed(2)})`,
  };
}
