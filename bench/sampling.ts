import { setTimeout as delay } from 'node:timers/promises';
import { measureCoreLatency } from './core-latency.ts';
import type { LoadGenerator, LoadJob } from './load-generator.ts';
import type { ProcessStats, Server } from './servers.ts';

/** What is measured: a server and the load that it gets. */
export interface Scenario {
  name: string;
  server: Server;
  job: (round: number) => Omit<LoadJob, 'port' | 'seconds'>;
}

export interface SamplingOptions {
  rounds: number;
  /** The duration of one sample. */
  seconds: number;
  /** The pause before each sample, in which the previous server finishes its background work. */
  pauseMs?: number;
}

/** One measurement of one scenario. */
export interface Sample {
  requestsPerSecond: number;
  /** Processor time of the server's process per response. */
  cpuMicros: number;
  p50Ms: number;
  p99Ms: number;
  /** See `measureCoreLatency`; measured before the sample. */
  coreLatencyNanos: number;
}

export interface ScenarioResult {
  name: string;
  samples: Sample[];
  rssBeforeBytes: number;
  rssAfterBytes: number;
}

/** @throws Error if a response was not the expected one */
export async function takeSample(
  generator: LoadGenerator,
  { name, server, job }: Scenario,
  { round, seconds }: { round: number; seconds: number },
): Promise<Sample> {
  const coreLatencyNanos = await measureCoreLatency();
  const before = await server.stats();
  const result = await generator.run({ ...job(round), port: server.port, seconds });
  const after = await server.stats();
  if (result.unexpected > 0 || result.responses === 0) {
    throw new Error(`${name}: ${result.unexpected} of ${result.responses} responses were unexpected`);
  }
  return {
    requestsPerSecond: result.responses / result.seconds,
    cpuMicros: (after.cpuMicros - before.cpuMicros) / result.responses,
    p50Ms: result.p50Ms,
    p99Ms: result.p99Ms,
    coreLatencyNanos,
  };
}

/**
 * Takes one sample of each scenario per round, in alternating order. Other load on the machine then affects all
 * scenarios alike, and a ratio compares samples that were taken close together.
 */
export async function sampleAlternately(
  generator: LoadGenerator,
  scenarios: readonly Scenario[],
  { rounds, seconds, pauseMs = 0 }: SamplingOptions,
): Promise<ScenarioResult[]> {
  const results = new Map<Scenario, ScenarioResult>();
  for (let round = 0; round < rounds; round++) {
    for (const scenario of round % 2 === 0 ? scenarios : scenarios.toReversed()) {
      await delay(pauseMs);
      const before: ProcessStats = await scenario.server.stats();
      const previous = results.get(scenario);
      const sample = await takeSample(generator, scenario, { round, seconds });
      const { rssBytes: rssAfterBytes } = await scenario.server.stats();
      results.set(scenario, {
        name: scenario.name,
        samples: [...(previous?.samples ?? []), sample],
        rssBeforeBytes: previous?.rssBeforeBytes ?? before.rssBytes,
        rssAfterBytes,
      });
    }
  }
  return [...results.values()];
}

/** Merges the samples of several processes of the same program; the memory is that of the last process. */
export function mergeResults(results: readonly ScenarioResult[]): ScenarioResult {
  const last = results.at(-1);
  if (last === undefined) throw new Error('nothing was measured');
  return { ...last, samples: results.flatMap(({ samples }) => samples) };
}

export function median(values: readonly number[]): number {
  const sorted = values.toSorted((a, b) => a - b);
  const middle = sorted.length >> 1;
  const upper = sorted[middle] ?? Number.NaN;
  return sorted.length % 2 === 1 ? upper : ((sorted[middle - 1] ?? Number.NaN) + upper) / 2;
}

/** The median of the ratios of samples of the same round. */
export function medianRatio(samples: readonly Sample[], baseline: readonly Sample[], field: keyof Sample): number {
  return median(samples.map((sample, round) => sample[field] / (baseline[round]?.[field] ?? Number.NaN)));
}
