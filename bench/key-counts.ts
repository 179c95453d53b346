import { setTimeout as delay } from 'node:timers/promises';
import type { Load } from './load-generator.ts';
import { type Promised, type Row, toRow } from './report.ts';
import type { Question } from './request-templates.ts';
import { type Contestant, type Measured, takeTurn, together } from './sampling.ts';
import { connections, oneKey } from './scenarios.ts';
import type { Server } from './servers.ts';
import type { Stage } from './testbed.ts';

const names = { one: 'verify, 1 key, lasting', all: 'verify, all keys (Zipf), lasting' } as const;

export interface Lasting {
  /** Of processes, one pair after the other; two processes of one and the same program differ. */
  pairs: number;
  /** Of one turn: long enough that what was counted is written within it. */
  seconds: number;
  /** Before the first turn of one key. */
  untilCompiledSeconds: number;
  /** Before the first turn of all keys: from then on as much is written as is counted. */
  untilSteadySeconds: number;
}

/**
 * Compares one key with all keys under lasting load, so that each side pays for writing its own usage. The turn with all
 * keys is between two turns with one key. Its process has ended, and so has written its usage, before the second one.
 */
export async function compareKeyCounts(
  { stage, load, question }: { stage: Stage; load: Load; question: Question },
  { pairs, ...lasting }: Lasting,
): Promise<Row[]> {
  const measured: Array<{ one: Measured; all: Measured }> = [];
  for (let pair = 0; pair < pairs; pair++) measured.push(await compare({ stage, load, question }, lasting));
  const one = together(measured.map((pair) => pair.one));
  const all = together(measured.map((pair) => pair.all));
  return [toRow(one, one), toRow(all, one)];
}

async function compare(
  { stage, load, question }: { stage: Stage; load: Load; question: Question },
  { seconds, untilCompiledSeconds, untilSteadySeconds }: Omit<Lasting, 'pairs'>,
): Promise<{ one: Measured; all: Measured }> {
  const asked = (name: string, server: Server, keys: typeof oneKey | { keySet: 'good'; order: 'zipf' }): Contestant => {
    return { name, server, job: () => ({ question, connections, inRow, ...keys }) };
  };
  const one = asked(names.one, await stage.startLatchkey(), oneKey);
  const all = asked(names.all, await stage.startLatchkey(), { keySet: 'good', order: 'zipf' });
  const ask = ({ server, job }: Contestant, seconds: number) =>
    load.run({ ...job(0), port: server.port, seconds }).then(() => undefined);
  try {
    await load.run({ ...all.job(0), port: all.server.port, order: 'once', seconds: 60 });
    await delay(writtenWithinMs);
    await ask(one, untilCompiledSeconds);
    const first = await takeTurn(load, one, { round: 0, seconds });
    for (let stretch = 0; stretch < stretches; stretch++) await ask(all, untilSteadySeconds / stretches);
    const before = await all.server.facts();
    const turns = [await takeTurn(load, all, { round: 0, seconds }), await takeTurn(load, all, { round: 1, seconds })];
    const after = await all.server.facts();
    await all.server.stop();
    await ask(one, untilAwakeSeconds);
    const second = await takeTurn(load, one, { round: 1, seconds });
    const { rssBytes } = await one.server.facts();
    return {
      one: { name: names.one, turns: [first, second], rssBeforeBytes: rssBytes, rssAfterBytes: rssBytes },
      all: { name: names.all, turns, rssBeforeBytes: before.rssBytes, rssAfterBytes: after.rssBytes },
    };
  } finally {
    await Promise.all([one.server.stop(), all.server.stop()]);
  }
}

/** What was counted is written every five seconds. */
const writtenWithinMs = 7_000;
/** Each with picks of its own: of those that came again before they are written, less would be written. */
const stretches = 3;
/** More than are asked in a stretch. */
const inRow = 2 ** 19;
/** After it has had nothing to do. */
const untilAwakeSeconds = 1;
const least = 0.75;

export function judgeKeyCounts(rows: readonly Row[]): Promised {
  const all = rows.find(({ name }) => name === names.all);
  if (all === undefined) throw new Error('all keys were not measured');
  return {
    promise: 'all keys: within 25 % of one key',
    kept: all.ofBare >= least,
    measured: `${all.ofBare.toFixed(2)} (by processor time ${all.ofBareByCpu.toFixed(2)})`,
  };
}
