import type { Flood } from './flood.ts';
import type { Promised, Row } from './report.ts';
import { names } from './scenarios.ts';

const least = { ofBare: 0.6 };
const most = { p99OfBare: 3, goodP99Ms: 50, memoryGrowth: 1.1 };

/** Says of each promise whether this run has kept it. On a machine that others use too, one run proves little. */
export function judge(rows: readonly Row[], flood: Flood): Promised[] {
  const row = (name: string): Row => {
    const found = rows.find((one) => one.name === name);
    if (found === undefined) throw new Error(`${name} was not measured`);
    return found;
  };
  const [one, authorize] = [row(names.verifyOne), row(names.authorizeOne)];
  const growth = flood.rssBytes.after / flood.rssBytes.before;
  const fast = ({ name, ofBare, ofBareByCpu }: Row): Promised => ({
    promise: `${name}: at least ${least.ofBare} of the bare route's requests a second`,
    kept: ofBare >= least.ofBare,
    measured: `${ofBare.toFixed(2)} (by processor time ${ofBareByCpu.toFixed(2)})`,
  });
  const even = ({ name, p99OfBare }: Row): Promised => ({
    promise: `${name}: p99 under ${most.p99OfBare} times the bare route's`,
    kept: p99OfBare < most.p99OfBare,
    measured: p99OfBare.toFixed(2),
  });
  return [
    fast(one),
    fast(authorize),
    even(one),
    even(authorize),
    { promise: 'wrong keys: no argon2id run', kept: flood.argon2Runs === 0, measured: String(flood.argon2Runs) },
    {
      promise: `wrong keys: a good client's p99 under ${most.goodP99Ms} ms`,
      kept: flood.goodP99Ms.beside < most.goodP99Ms,
      measured: `${flood.goodP99Ms.beside.toFixed(1)} ms`,
    },
    {
      promise: 'wrong keys: memory does not grow by more than a tenth',
      kept: growth <= most.memoryGrowth,
      measured: `${growth.toFixed(2)} times`,
    },
  ];
}
