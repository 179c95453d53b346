import { sql } from 'kysely';
import type { Keyring } from '../crypto/keyring.ts';
import type { Db } from '../database/client.ts';
import type { DatabaseClock } from '../database/clock.ts';
import { chunksOf } from '../lib/batches.ts';
import { dayMs } from '../lib/durations.ts';
import { endOf, readLastArchive } from './archives/archive.ts';
import { type ChainStart, type ChainVerdict, firstStart } from './chain-walk.ts';
import type { Checkpoint } from './checkpoints/checkpoint.ts';
import { readPoint, type StoredPoint, storePoint, type VerifiedPoint } from './verified-point.ts';
import { type StoredVerdict, type VerifyOptions, verifyChain } from './verify.ts';

/** A chain is verified from its first event on if the last sound verification of all of it is older. */
export const wholeEveryMs = 7 * dayMs;

export interface ResumedVerdict extends StoredVerdict {
  /** When the last sound verification of the whole chain began; null if none is known. */
  fullyVerifiedAt: Date | null;
  /** Why the stored result of the last verification cannot be trusted; undefined if it can. */
  pointFlaw: string | undefined;
}

export interface ResumeDeps {
  db: Db;
  keyring: Keyring;
  clock: DatabaseClock;
  /** Called if the result cannot be stored. The next verification then starts where this one did. */
  onUnstored: (error: unknown) => void;
}

interface ResumeOptions extends VerifyOptions {
  /** Verifies the whole chain. */
  isFull: boolean;
}

/**
 * Verifies a chain from the point up to which the last verification found it sound, and stores how far it is sound now.
 * Reads the whole chain if there is no such point, or if anything contradicts it.
 */
export async function resumeVerification(
  deps: ResumeDeps,
  chain: string,
  { isFull, checkpoints = [], ...options }: ResumeOptions,
): Promise<ResumedVerdict> {
  const stored = await readPoint(deps, chain);
  const { point, isForged } = stored;
  const archive = await readLastArchive(deps.db, chain, deps.keyring);
  const start = archive === undefined ? firstStart : endOf(archive);
  const earlier = checkpoints.filter(({ size }) => size < (point?.sequence ?? 0) && size >= start.sequence);
  const isResumed = !isFull && canResume(stored) && (await areMatched(deps.db, chain, start, earlier));
  const verdict = await verifyChain(deps.db, chain, {
    ...options,
    keyring: deps.keyring,
    checkpoints,
    verified: point && { sequence: point.sequence, hash: point.hash, at: point.verified_at },
    from: isResumed ? point : undefined,
  });
  const isSound = verdict.flaws.length === 0;
  const next = isSound && !isForged ? nextPoint(verdict, stored, isResumed) : undefined;
  if (next !== undefined) await storePoint(deps, next, stored.mac).catch(deps.onUnstored);
  if (!isSound) await requireWhole(deps, chain).catch(deps.onUnstored);
  return {
    ...verdict,
    agreeing: verdict.agreeing + (isResumed ? earlier.length : 0),
    fullyVerifiedAt: isSound ? ((next ?? point)?.fully_verified_at ?? null) : null,
    pointFlaw: isForged
      ? 'the row of verified_points, which says how far the chain was verified, was changed or written without the ' +
        `keyring. Find out who did that, then delete it: delete from verified_points where chain = '${chain}'`
      : undefined,
  };
}

function canResume({ now, point, hashAtPoint }: StoredPoint): boolean {
  if (point === undefined || point.fully_verified_at === null || hashAtPoint?.equals(point.hash) !== true) return false;
  const ageMs = now.getTime() - point.fully_verified_at.getTime();
  return ageMs >= 0 && ageMs < wholeEveryMs;
}

/** The point after a sound verification; undefined if the chain has no event. Not stored if another one was meanwhile. */
function nextPoint(
  { chain, events, head }: ChainVerdict,
  { now, point }: StoredPoint,
  isResumed: boolean,
): VerifiedPoint | undefined {
  if (events === 0) return undefined;
  const fullyVerifiedAt = isResumed ? (point?.fully_verified_at ?? null) : now;
  return { chain, sequence: events, hash: head, verified_at: now, fully_verified_at: fullyVerifiedAt };
}

/**
 * After a flaw: the next verification reads the whole chain. Also replaces a point that another verification has stored
 * meanwhile, because it may not have read the bad event.
 */
async function requireWhole(deps: ResumeDeps, chain: string): Promise<void> {
  for (;;) {
    const { point, mac } = await readPoint(deps, chain);
    if (point === undefined || (await storePoint(deps, { ...point, fully_verified_at: null }, mac))) return;
  }
}

const sizesAtOnce = 10_000;

/** Whether the stored events, and the one before them, have the hashes of these checkpoints. */
async function areMatched(
  db: Db,
  chain: string,
  start: ChainStart,
  checkpoints: readonly Checkpoint[],
): Promise<boolean> {
  for (const chunk of chunksOf(checkpoints, sizesAtOnce)) {
    const { rows } = await sql<{ sequence: number; hash: Buffer }>`select sequence, hash from history
      where chain = ${chain} and sequence = any(${chunk.map(({ size }) => size)}::bigint[])`.execute(db);
    const hashes = new Map(rows.map(({ sequence, hash }) => [sequence, hash]));
    hashes.set(start.sequence, start.hash);
    if (!chunk.every(({ size, hash }) => hashes.get(size)?.equals(hash))) return false;
  }
  return true;
}
