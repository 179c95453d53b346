import { writeFileSync } from 'node:fs';
import { arch, cpus, platform } from 'node:os';
import path from 'node:path';
import type { Flood } from './flood.ts';
import type { Notifying } from './notification-cost.ts';
import { type Recording, tellRecording } from './recording-cost.ts';
import { type Measured, median, ratioOf, type Turn } from './sampling.ts';

/** One line of the table. */
export interface Row {
  name: string;
  answersASecond: number;
  /** Requests a second as a part of the baseline's, by turns of the same round; 1 for a baseline. */
  ofBare: number;
  /** The baseline's time of computing as a part of this one's: what `ofBare` would be if only the processor counted. */
  ofBareByCpu: number;
  cpuMicros: number;
  p50Ms: number;
  p99Ms: number;
  p99OfBare: number;
  rssBeforeBytes: number;
  rssAfterBytes: number;
  turns: Turn[];
}

/** What is promised, and whether this run has kept it. */
export interface Promised {
  promise: string;
  kept: boolean;
  measured: string;
}

export interface Results {
  date: string;
  machine: { node: string; cpu: string; cores: number; system: string };
  quick: boolean;
  keys: number;
  rows: Row[];
  promises: Promised[];
  bytesPerKnownKey: number;
  flood: Flood;
  notifying: Notifying[];
  recording: Recording[];
  notMeasured: string[];
}

export function toRow(measured: Measured, bare: Measured): Row {
  const { name, turns, rssBeforeBytes, rssAfterBytes } = measured;
  const middle = (member: keyof Turn) => median(turns.map((turn) => turn[member]));
  return {
    name,
    answersASecond: middle('answersASecond'),
    ofBare: ratioOf(turns, bare.turns, 'answersASecond'),
    ofBareByCpu: 1 / ratioOf(turns, bare.turns, 'cpuMicros'),
    cpuMicros: middle('cpuMicros'),
    p50Ms: middle('p50Ms'),
    p99Ms: middle('p99Ms'),
    p99OfBare: ratioOf(turns, bare.turns, 'p99Ms'),
    rssBeforeBytes,
    rssAfterBytes,
    turns,
  };
}

export function describeMachine(): Results['machine'] {
  const processors = cpus();
  return {
    node: process.version,
    cpu: processors[0]?.model.trim() ?? 'unknown',
    cores: processors.length,
    system: `${platform()} ${arch()}`,
  };
}

const megabytes = (bytes: number) => (bytes / 2 ** 20).toFixed(0);

/** The rows as a table in Markdown, for the terminal and the README alike. */
export function toTable(rows: readonly Row[]): string {
  const cells = [
    ['', 'requests/s', 'of bare', 'CPU µs', 'p50 ms', 'p99 ms', 'memory MB'],
    ['---', '---:', '---:', '---:', '---:', '---:', '---:'],
    ...rows.map((row) => [
      row.name,
      Math.round(row.answersASecond).toLocaleString('en'),
      row.ofBare.toFixed(2),
      row.cpuMicros.toFixed(0),
      row.p50Ms.toFixed(2),
      row.p99Ms.toFixed(2),
      `${megabytes(row.rssBeforeBytes)} → ${megabytes(row.rssAfterBytes)}`,
    ]),
  ];
  return cells.map((line) => `| ${line.join(' | ')} |`).join('\n');
}

/** Rows that were measured while it was great do not compare with those of another run. */
function tellCoreDistance(rows: readonly Row[]): string {
  const all = rows.flatMap(({ turns }) => turns.map(({ coreToCoreNanos }) => coreToCoreNanos));
  const [least, middle, most] = [Math.min(...all), median(all), Math.max(...all)].map(Math.round);
  return `From one core to another and back: ${middle} ns (${least} to ${most}).`;
}

export function toText(results: Results): string {
  const { machine, flood, notifying, promises } = results;
  return [
    `${results.date.slice(0, 10)}, Node ${machine.node}, ${machine.cpu}, ${machine.cores} cores`,
    '',
    toTable(results.rows),
    '',
    tellCoreDistance(results.rows),
    `A known key takes ${Math.round(results.bytesPerKnownKey)} bytes.`,
    `Flood: ${Math.round(flood.wrongKeysASecond)} wrong keys a second, ${flood.argon2Runs} argon2id runs; a good client's ` +
      `p99 is ${flood.goodP99Ms.alone.toFixed(1)} ms alone and ${flood.goodP99Ms.beside.toFixed(1)} ms beside it; ` +
      `memory ${megabytes(flood.rssBytes.before)} → ${megabytes(flood.rssBytes.after)} MB.`,
    ...notifying.map(
      ({ writers, changesASecond: { withTriggers, withoutTriggers } }) =>
        `Recorded changes a second by ${writers} writers: ${Math.round(withTriggers)}; ` +
        `${Math.round(withoutTriggers)} without telling of them.`,
    ),
    ...results.recording.map(tellRecording),
    ...results.notMeasured,
    '',
    ...promises.map(({ promise, kept, measured }) => `${kept ? 'kept  ' : 'missed'}  ${promise}: ${measured}`),
  ].join('\n');
}

export function writeResults(results: Results): string {
  const file = path.join(import.meta.dirname, 'results.json');
  const rounded = (_name: string, value: unknown) =>
    typeof value === 'number' && !Number.isInteger(value) ? Math.round(value * 1000) / 1000 : value;
  writeFileSync(file, `${JSON.stringify(results, rounded, 2)}\n`);
  return file;
}
