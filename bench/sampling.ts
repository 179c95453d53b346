import { setTimeout as delay } from 'node:timers/promises';
import { measureCoreDistance } from './core-latency.ts';
import type { Load, LoadJob } from './load-generator.ts';
import type { Facts, Server } from './servers.ts';

/** One thing that is measured: what is asked of which server. */
export interface Contestant {
  name: string;
  server: Server;
  job: (round: number) => Omit<LoadJob, 'port' | 'seconds'>;
}

export interface Pace {
  rounds: number;
  /** Of one turn. */
  seconds: number;
  /** Between two turns: what one has left to do, such as writing what it counted, would be work beside the next. */
  restMs?: number;
}

/** One turn of one contestant. */
export interface Turn {
  answersASecond: number;
  /** Time that the server's process has computed for each answer. */
  cpuMicros: number;
  p50Ms: number;
  p99Ms: number;
  /** See `measureCoreDistance`; at the beginning of the turn. */
  coreToCoreNanos: number;
}

export interface Measured {
  name: string;
  turns: Turn[];
  rssBeforeBytes: number;
  rssAfterBytes: number;
}

/** @throws Error where an answer was not the expected one */
export async function takeTurn(
  load: Load,
  { name, server, job }: Contestant,
  { round, seconds }: { round: number; seconds: number },
): Promise<Turn> {
  const coreToCoreNanos = await measureCoreDistance();
  const before = await server.facts();
  const result = await load.run({ ...job(round), port: server.port, seconds });
  const after = await server.facts();
  if (result.wrong > 0 || result.answers === 0) {
    throw new Error(`${name}: ${result.wrong} of ${result.answers} answers were not the expected ones`);
  }
  return {
    answersASecond: result.answers / result.seconds,
    cpuMicros: (after.cpuMicros - before.cpuMicros) / result.answers,
    p50Ms: result.p50Ms,
    p99Ms: result.p99Ms,
    coreToCoreNanos,
  };
}

/**
 * Lets all have their turns in each round, forwards in one and backwards in the next: what else the machine does hits
 * all of them alike, and a ratio is made from turns that lie close together.
 */
export async function alternate(
  load: Load,
  contestants: readonly Contestant[],
  { rounds, seconds, restMs = 0 }: Pace,
): Promise<Measured[]> {
  const measured = new Map<Contestant, Measured>();
  for (let round = 0; round < rounds; round++) {
    for (const contestant of round % 2 === 0 ? contestants : contestants.toReversed()) {
      await delay(restMs);
      const before: Facts = await contestant.server.facts();
      const known = measured.get(contestant);
      const turn = await takeTurn(load, contestant, { round, seconds });
      const { rssBytes: rssAfterBytes } = await contestant.server.facts();
      measured.set(contestant, {
        name: contestant.name,
        turns: [...(known?.turns ?? []), turn],
        rssBeforeBytes: known?.rssBeforeBytes ?? before.rssBytes,
        rssAfterBytes,
      });
    }
  }
  return [...measured.values()];
}

/** The turns of several processes of one and the same program; memory as the last of them had it. */
export function together(all: readonly Measured[]): Measured {
  const last = all.at(-1);
  if (last === undefined) throw new Error('nothing was measured');
  return { ...last, turns: all.flatMap(({ turns }) => turns) };
}

export function median(values: readonly number[]): number {
  const sorted = values.toSorted((one, other) => one - other);
  const middle = sorted.length >> 1;
  const upper = sorted[middle] ?? Number.NaN;
  return sorted.length % 2 === 1 ? upper : ((sorted[middle - 1] ?? Number.NaN) + upper) / 2;
}

/** The median of the ratios of turns of the same round. */
export function ratioOf(turns: readonly Turn[], others: readonly Turn[], member: keyof Turn): number {
  return median(turns.map((turn, round) => turn[member] / (others[round]?.[member] ?? Number.NaN)));
}
