import { writeFileSync } from 'node:fs';
import { arch, cpus, platform } from 'node:os';
import path from 'node:path';
import type { Flood } from './flood.ts';
import type { NotificationCost } from './notification-cost.ts';
import { formatRecordingCost, type RecordingCost } from './recording-cost.ts';
import { median, medianRatio, type Sample, type ScenarioResult } from './sampling.ts';

/** One row of the table: medians of all samples. */
export interface Row {
  name: string;
  requestsPerSecond: number;
  /** Requests per second relative to the baseline, by samples of the same round; 1 for a baseline. */
  ratio: number;
  /** The baseline's processor time relative to this scenario's, per response. */
  cpuRatio: number;
  cpuMicros: number;
  p50Ms: number;
  p99Ms: number;
  p99Ratio: number;
  rssBeforeBytes: number;
  rssAfterBytes: number;
  samples: Sample[];
}

/** A performance target and what this run measured. */
export interface TargetResult {
  target: string;
  isMet: boolean;
  measured: string;
}

export interface Results {
  date: string;
  machine: { node: string; cpu: string; cores: number; system: string };
  quick: boolean;
  keys: number;
  rows: Row[];
  targets: TargetResult[];
  bytesPerKnownKey: number;
  flood: Flood;
  notificationCosts: NotificationCost[];
  recordingCosts: RecordingCost[];
  notMeasured: string[];
}

export function toRow(result: ScenarioResult, baseline: ScenarioResult): Row {
  const { name, samples, rssBeforeBytes, rssAfterBytes } = result;
  const medianOf = (field: keyof Sample) => median(samples.map((sample) => sample[field]));
  return {
    name,
    requestsPerSecond: medianOf('requestsPerSecond'),
    ratio: medianRatio(samples, baseline.samples, 'requestsPerSecond'),
    cpuRatio: 1 / medianRatio(samples, baseline.samples, 'cpuMicros'),
    cpuMicros: medianOf('cpuMicros'),
    p50Ms: medianOf('p50Ms'),
    p99Ms: medianOf('p99Ms'),
    p99Ratio: medianRatio(samples, baseline.samples, 'p99Ms'),
    rssBeforeBytes,
    rssAfterBytes,
    samples,
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

/** The rows as a Markdown table. */
export function toTable(rows: readonly Row[]): string {
  const cells = [
    ['', 'requests/s', 'ratio', 'CPU µs', 'p50 ms', 'p99 ms', 'memory MB'],
    ['---', '---:', '---:', '---:', '---:', '---:', '---:'],
    ...rows.map((row) => [
      row.name,
      Math.round(row.requestsPerSecond).toLocaleString('en'),
      row.ratio.toFixed(2),
      row.cpuMicros.toFixed(0),
      row.p50Ms.toFixed(2),
      row.p99Ms.toFixed(2),
      `${megabytes(row.rssBeforeBytes)} → ${megabytes(row.rssAfterBytes)}`,
    ]),
  ];
  return cells.map((line) => `| ${line.join(' | ')} |`).join('\n');
}

function formatCoreLatency(rows: readonly Row[]): string {
  const all = rows.flatMap(({ samples }) => samples.map(({ coreLatencyNanos }) => coreLatencyNanos));
  const [minimum, middle, maximum] = [Math.min(...all), median(all), Math.max(...all)].map(Math.round);
  return `Round trip between two cores: median ${middle} ns (${minimum} to ${maximum}).`;
}

export function toText(results: Results): string {
  const { machine, flood, notificationCosts, recordingCosts, targets } = results;
  return [
    `${results.date.slice(0, 10)}, Node ${machine.node}, ${machine.cpu}, ${machine.cores} cores`,
    '',
    toTable(results.rows),
    '',
    formatCoreLatency(results.rows),
    `Memory per known key: ${Math.round(results.bytesPerKnownKey)} bytes.`,
    `Flood: ${Math.round(flood.invalidKeysPerSecond)} invalid keys per second, ${flood.argon2Runs} argon2id runs; ` +
      `p99 of valid keys ${flood.validP99Ms.alone.toFixed(1)} ms without the flood and ` +
      `${flood.validP99Ms.duringFlood.toFixed(1)} ms with it; ` +
      `memory ${megabytes(flood.rssBytes.before)} → ${megabytes(flood.rssBytes.after)} MB.`,
    ...notificationCosts.map(
      ({ writers, changesPerSecond: { withTriggers, withoutTriggers } }) =>
        `Recorded changes per second, writers: ${writers}: ${Math.round(withTriggers)} with notifications, ` +
        `${Math.round(withoutTriggers)} without.`,
    ),
    ...recordingCosts.map(formatRecordingCost),
    ...results.notMeasured,
    '',
    ...targets.map(({ target, isMet, measured }) => `${isMet ? 'met   ' : 'missed'}  ${target}: ${measured}`),
  ].join('\n');
}

export function writeResults(results: Results): string {
  const file = path.join(import.meta.dirname, 'results.json');
  const rounded = (_name: string, value: unknown) =>
    typeof value === 'number' && !Number.isInteger(value) ? Math.round(value * 1000) / 1000 : value;
  writeFileSync(file, `${JSON.stringify(results, rounded, 2)}\n`);
  return file;
}
