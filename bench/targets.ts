import type { Flood } from './flood.ts';
import type { Row, TargetResult } from './report.ts';
import { names } from './scenarios.ts';

const minimumRatio = 0.6;
const maximumP99Ratio = 3;
const maximumP99UnderFloodMs = 50;
const maximumMemoryRatio = 1.1;

/** Compares the main rows and the flood with their targets. */
export function checkTargets(rows: readonly Row[], flood: Flood): TargetResult[] {
  const row = (name: string): Row => {
    const found = rows.find((row) => row.name === name);
    if (found === undefined) throw new Error(`${name} was not measured`);
    return found;
  };
  const [verify, authorize] = [row(names.verifyOneKey), row(names.authorizeOneKey)];
  const memoryRatio = flood.rssBytes.after / flood.rssBytes.before;
  const checkThroughput = ({ name, ratio, cpuRatio }: Row): TargetResult => ({
    target: `${name}: at least ${minimumRatio} of the bare route's requests per second`,
    isMet: ratio >= minimumRatio,
    measured: `${ratio.toFixed(2)} (by processor time ${cpuRatio.toFixed(2)})`,
  });
  const checkLatency = ({ name, p99Ratio }: Row): TargetResult => ({
    target: `${name}: p99 below ${maximumP99Ratio} times the bare route's`,
    isMet: p99Ratio < maximumP99Ratio,
    measured: p99Ratio.toFixed(2),
  });
  return [
    checkThroughput(verify),
    checkThroughput(authorize),
    checkLatency(verify),
    checkLatency(authorize),
    { target: 'flood: no argon2id run', isMet: flood.argon2Runs === 0, measured: String(flood.argon2Runs) },
    {
      target: `flood: p99 of valid keys below ${maximumP99UnderFloodMs} ms`,
      isMet: flood.validP99Ms.duringFlood < maximumP99UnderFloodMs,
      measured: `${flood.validP99Ms.duringFlood.toFixed(1)} ms`,
    },
    {
      target: 'flood: resident memory grows by at most 10 %',
      isMet: memoryRatio <= maximumMemoryRatio,
      measured: `${memoryRatio.toFixed(2)} times`,
    },
  ];
}
