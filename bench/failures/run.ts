import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { eventually, type Scope } from '../../test/support/process.ts';
import { compareBooks, keepCheckpoint } from './books.ts';
import type { Failure } from './failures.ts';
import { longestGapMs, longestSilenceMs, unreported } from './followers.ts';
import { createLedger, type Ledger, type RequestKind } from './ledger.ts';
import { type LoadOptions, startLoad } from './load.ts';
import type { Installation } from './parts.ts';

export interface FailureRunOptions {
  load: Omit<LoadOptions, 'cacheSeconds'>;
  /** How long a part is away. */
  outageMs: number;
  /** How long the load continues after the recovery. */
  settleMs: number;
  /** The limit for the time from the repair until every replica serves changes. */
  recoveryLimitMs: number;
  log: (line: string) => void;
}

/** One failure, from its beginning until the next one begins. Times are monotonic milliseconds. */
interface Phase {
  failure: Pick<Failure<Installation>, 'name' | 'cutsPostgres' | 'isOrderly'>;
  beganAtMs: number;
  repairedAtMs: number;
  recoveredAtMs: number;
  endedAtMs: number;
}

/** What was seen during one failure. */
export interface PhaseResult {
  name: string;
  /** Numbers of requests by status. */
  statuses: Record<RequestKind, Record<string, number>>;
  /** The longest time without a success. */
  longestGapMs: Record<RequestKind, number>;
  outageMs: number;
  /** From the repair until every replica serves changes with a live change feed, and counts limits in Redis if it should. */
  recoveryMs: number;
  deletedKeys: number;
  /** How long a deleted key was valid at a replica, or another one at the backend with the client, at most. */
  validForMs: { replicas: number; backend: number };
  /** The longest time of a follower between two heartbeats. */
  silenceMs: number;
}

export interface FailureRunResult {
  phases: PhaseResult[];
  requests: number;
  acknowledged: number;
  replays: number;
  broken: string[];
}

const cacheSeconds = 10;
/** docs/concepts.md, "How soon a change acts". */
const bounds = { replica: 2_000, backend: 5_000, cacheMs: cacheSeconds * 1_000 };
/** A gateway's replies, no reply, and what Latchkey may answer while something is away or a request is repeated. */
const allowedStatus = /^(none|200|201|409|503|50[234] of HAProxy)$/;
const successStatus = /^20[01]$/;

/** Lets each part fail in turn under load, and compares the books. */
export async function runFailures<Started extends Installation>(
  t: Scope,
  parts: Started,
  failures: readonly Failure<Started>[],
  options: FailureRunOptions,
): Promise<FailureRunResult> {
  const { log } = options;
  const directory = await mkdtemp(path.join(tmpdir(), 'latchkey-failures-'));
  t.teardown(() => rm(directory, { recursive: true, force: true }));
  const checkpoints = path.join(directory, 'checkpoints');
  const ledger = createLedger();
  const load = await startLoad(parts, ledger, { ...options.load, cacheSeconds });
  const broken: string[] = [];
  const phases: Phase[] = [];
  for (const failure of failures) {
    await keepCheckpoint(parts, checkpoints);
    const phase = await runPhase(parts, failure, options);
    phases.push(phase);
    const recoveryMs = phase.recoveredAtMs - phase.repairedAtMs;
    if (recoveryMs > options.recoveryLimitMs) {
      broken.push(`${phase.failure.name}: the replicas recovered ${Math.round(recoveryMs)} ms after the repair`);
    }
  }
  log('ending the load');
  await load.stop();
  broken.push(...ledger.violations, ...load.followers.flatMap((one) => unreported(one, ledger.acknowledged)));
  const results = phases.map((phase) => resultOf(phase, ledger, load.followers));
  for (const [index, result] of results.entries()) {
    broken.push(...brokenBounds(result, parts.staleSeconds, phases[index]?.failure));
  }
  broken.push(...(await compareBooks(parts, ledger, checkpoints)));
  return {
    phases: results,
    requests: ledger.sent.length,
    acknowledged: ledger.acknowledged.length,
    replays: ledger.replays,
    broken,
  };
}

async function runPhase<Started extends Installation>(
  parts: Started,
  failure: Failure<Started>,
  options: FailureRunOptions,
): Promise<Phase> {
  const { log, outageMs, settleMs } = options;
  log(failure.name);
  const beganAtMs = performance.now();
  const repair = await failure.begin(parts);
  await delay(outageMs);
  log('  repair');
  await repair();
  const repairedAtMs = performance.now();
  await untilRecovered(parts);
  const recoveredAtMs = performance.now();
  log(`  every replica serves changes ${Math.round(recoveredAtMs - repairedAtMs)} ms after the repair`);
  if (failure.complete !== undefined) {
    await failure.complete(parts);
    log('  a standby follows the new primary');
  }
  await delay(settleMs);
  return { failure, beganAtMs, repairedAtMs, recoveredAtMs, endedAtMs: performance.now() };
}

async function untilRecovered({ replicas }: Installation): Promise<void> {
  let troubles: string[] = [];
  await eventually(async () => {
    const found = await Promise.all(replicas.map((replica) => replica.trouble()));
    troubles = found.flatMap((trouble, index) => (trouble === undefined ? [] : [`replica ${index + 1}: ${trouble}`]));
    return troubles.length === 0;
  }, 60_000).catch((cause: unknown) => {
    throw new Error(`the replicas did not recover: ${troubles.join('; ')}`, { cause });
  });
}

function resultOf(phase: Phase, ledger: Ledger, followers: Parameters<typeof longestSilenceMs>[0][]): PhaseResult {
  const { beganAtMs, endedAtMs } = phase;
  const isWithin = (atMs: number) => atMs >= beganAtMs && atMs < endedAtMs;
  const sent = ledger.sent.filter(({ repliedAtMs }) => isWithin(repliedAtMs));
  const probes = ledger.probes.filter(({ acknowledgedAtMs }) => isWithin(acknowledgedAtMs));
  const ofKind = (kind: RequestKind) => sent.filter((one) => one.kind === kind);
  const statusesOf = (kind: RequestKind) => {
    const counts: Record<string, number> = {};
    for (const { status } of ofKind(kind)) counts[status] = (counts[status] ?? 0) + 1;
    return counts;
  };
  const gapOf = (kind: RequestKind) => {
    const successes = ofKind(kind).filter(({ isSuccess }) => isSuccess);
    return longestGapMs(
      successes.map(({ repliedAtMs }) => repliedAtMs),
      beganAtMs,
      endedAtMs,
    );
  };
  const ofBackend = probes.filter(({ where }) => where === 'backend');
  const ofReplicas = probes.filter(({ where }) => where !== 'backend');
  const longest = (some: typeof probes) => Math.max(0, ...some.map(({ validForMs }) => validForMs));
  return {
    name: phase.failure.name,
    statuses: { verify: statusesOf('verify'), fresh: statusesOf('fresh'), change: statusesOf('change') },
    longestGapMs: { verify: gapOf('verify'), fresh: gapOf('fresh'), change: gapOf('change') },
    outageMs: phase.repairedAtMs - beganAtMs,
    recoveryMs: phase.recoveredAtMs - phase.repairedAtMs,
    deletedKeys: new Set(probes.map(({ acknowledgedAtMs }) => acknowledgedAtMs)).size,
    validForMs: { replicas: longest(ofReplicas), backend: longest(ofBackend) },
    silenceMs: Math.max(0, ...followers.map((one) => longestSilenceMs(one, beganAtMs, endedAtMs))),
  };
}

function brokenBounds(
  { name, statuses, validForMs }: PhaseResult,
  staleSeconds: number,
  failure: Phase['failure'] | undefined,
): string[] {
  const staleMs = staleSeconds * 1_000;
  const isCut = failure?.cutsPostgres === true;
  const limits = {
    replicas: isCut ? staleMs : bounds.replica,
    backend: isCut ? staleMs + bounds.cacheMs : bounds.backend,
  };
  const late = (['replicas', 'backend'] as const)
    .filter((where) => validForMs[where] > limits[where])
    .map((where) => `${name}: a deleted key was valid for ${Math.round(validForMs[where])} ms at the ${where}`);
  const odd = (['verify', 'fresh', 'change'] as const).flatMap((kind) =>
    Object.entries(statuses[kind])
      .filter(([status]) => !(failure?.isOrderly ? successStatus : allowedStatus).test(status))
      .map(([status, count]) => `${name}: ${count} replies ${status} to ${kind}`),
  );
  return [...late, ...odd];
}

type Column = [title: string, cell: (phase: PhaseResult) => string];

/** The replies and the times as Markdown tables. */
export function toTables({ phases }: FailureRunResult): string {
  const seconds = (ms: number) => (ms / 1_000).toFixed(1);
  const count = (kinds: RequestKind[], status: RegExp) => (phase: PhaseResult) => {
    const counts = kinds.flatMap((kind) => Object.entries(phase.statuses[kind]));
    const matching = counts.filter(([name]) => status.test(name));
    return matching.reduce((sum, [, number]) => sum + number, 0).toLocaleString('en');
  };
  const replies: Column[] = [
    ['verifications: 200', count(['verify'], /^200$/)],
    ['503', count(['verify'], /^503$/)],
    ['HAProxy 50x', count(['verify'], /HAProxy/)],
    ['none', count(['verify'], /none/)],
    ['`no-cache`: 200', count(['fresh'], /^200$/)],
    ['others', count(['fresh'], /^(?!200$)/)],
    ['changes: 20x', count(['change'], /^20/)],
    ['503', count(['change'], /^503$/)],
    ['409', count(['change'], /^409$/)],
    ['HAProxy 50x', count(['change'], /HAProxy/)],
    ['none', count(['change'], /none/)],
  ];
  const times: Column[] = [
    ['away, s', ({ outageMs }) => seconds(outageMs)],
    ['no valid key, s', ({ longestGapMs }) => seconds(longestGapMs.verify)],
    ['no change, s', ({ longestGapMs }) => seconds(longestGapMs.change)],
    ['recovery, s', ({ recoveryMs }) => seconds(recoveryMs)],
    ['no heartbeat, s', ({ silenceMs }) => seconds(silenceMs)],
    ['deleted keys', ({ deletedKeys }) => String(deletedKeys)],
    ['valid at a replica, ms', ({ validForMs }) => validForMs.replicas.toFixed(0)],
    ['valid at the backend, ms', ({ validForMs }) => validForMs.backend.toFixed(0)],
  ];
  return [replies, times].map((columns) => toTable(phases, columns)).join('\n\n');
}

function toTable(phases: readonly PhaseResult[], columns: readonly Column[]): string {
  const lines = [
    ['what fails', ...columns.map(([title]) => title)],
    ['---', ...columns.map(() => '---:')],
    ...phases.map((phase) => [phase.name, ...columns.map(([, cell]) => cell(phase))]),
  ];
  return lines.map((cells) => `| ${cells.join(' | ')} |`).join('\n');
}
