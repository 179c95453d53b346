import type { Keyring } from '../crypto/keyring.ts';
import type { Db } from '../database/client.ts';
import { type Archive, type ArchivedPart, endOf, readArchivedPart, withoutKeyring } from './archives/archive.ts';
import { openArchiveFile } from './archives/archive-file.ts';
import { flawOfRow } from './chain.ts';
import { type ChainStart, type ChainVerdict, type ChainWalk, type WalkOptions, walkChain } from './chain-walk.ts';
import { takeLines } from './export.ts';
import { findStrays, readEvents, readHead, readStoredStart } from './store.ts';

export interface VerifyOptions extends WalkOptions {
  /** Authenticates archives. Without it, archived events are a flaw, unless `files` has them. */
  keyring?: Keyring | undefined;
  /** The files of the chain's archives, in order. They are verified, and must join the stored events. */
  files?: readonly ArchivedFile[] | undefined;
  /** Called with the sequence number of the last checked event. */
  onProgress?: (events: number) => void;
  /** Stops between two batches. */
  signal?: AbortSignal;
}

export interface ArchivedFile {
  path: string;
  /** The sequence number of its first event. */
  first: number;
}

export interface StoredVerdict extends ChainVerdict {
  /** The number of events at the beginning that were moved to files. `events` includes them. */
  archivedEvents: number;
}

/** What the stored part of a chain follows. */
interface Beginning extends ArchivedPart {
  /** The place before the first stored event; undefined if nothing is stored. */
  stored: ChainStart | undefined;
}

/** `latchkey history archive` may remove events meanwhile, some thousands at once. */
const attempts = 5;

/**
 * Recomputes a chain up to its current last event in constant memory and reports all flaws. Comparing with the stored
 * head also detects a tail that was cut. Starts after the archived events, and also checks those that are still stored.
 */
export async function verifyChain(db: Db, chain: string, options: VerifyOptions = {}): Promise<StoredVerdict> {
  for (let attempt = 1; ; attempt++) {
    const beginning = await readBeginning(db, chain, options.keyring);
    const verdict = await verifyAfter(db, chain, beginning, options);
    if (verdict.flaws.length === 0 || attempt === attempts) return verdict;
    const now = await readBeginning(db, chain, options.keyring);
    if (isSame(beginning, now)) return verdict;
  }
}

async function readBeginning(db: Db, chain: string, keyring: Keyring | undefined): Promise<Beginning> {
  return { ...(await readArchivedPart(db, chain, keyring)), stored: await readStoredStart(db, chain) };
}

function isSame(one: Beginning, other: Beginning): boolean {
  return one.archives.at(-1)?.id === other.archives.at(-1)?.id && one.stored?.sequence === other.stored?.sequence;
}

/** The first event to check is the one after this place. Undefined: number 1. */
function startOf({ archives, stored }: Beginning, { from, files }: VerifyOptions): ChainStart | undefined {
  const last = archives.at(-1);
  if (files !== undefined) return undefined;
  if (last === undefined || (from?.sequence ?? 0) >= last.last_sequence) return from;
  return stored !== undefined && stored.sequence < last.last_sequence ? stored : endOf(last);
}

/** Checks files of archives, as the beginning of the chain. */
async function takeFiles(walk: ChainWalk, archives: readonly Archive[], files: readonly ArchivedFile[]): Promise<void> {
  for (const { path, first } of files) {
    const file = openArchiveFile(path);
    await takeLines(walk, file.lines);
    const archive = archives.find(({ first_sequence }) => first_sequence === first);
    const range = { firstSequence: first, lastSequence: Math.max(first, walk.next() - 1) };
    if (archive === undefined) {
      walk.fail({ ...range, reason: `the database has no archive that begins as ${path} does` });
    } else if (!archive.file_sha256.equals(file.digest().sha256)) {
      walk.fail({ ...range, reason: `${path} differs from the file that was archived` });
    }
  }
}

async function verifyAfter(
  db: Db,
  chain: string,
  beginning: Beginning,
  options: VerifyOptions,
): Promise<StoredVerdict> {
  const { archives } = beginning;
  const last = archives.at(-1);
  const walk = walkChain(chain, { ...options, from: startOf(beginning, options) });
  for (const flaw of beginning.flaws) {
    if (flaw.reason !== withoutKeyring || options.files === undefined) walk.fail(flaw);
  }
  if (options.files !== undefined) await takeFiles(walk, archives, options.files);
  const checkEnd = () => {
    if (last === undefined || walk.next() - 1 !== last.last_sequence) return;
    if (walk.lastHash()?.equals(last.hash) !== false) return;
    const reason = 'the event differs from the last event of its archive';
    walk.fail({ firstSequence: last.last_sequence, lastSequence: last.last_sequence, reason });
  };
  checkEnd();
  const head = await readHead(db, chain);
  const after = walk.next() - 1;
  for await (const rows of readEvents(db, chain, head.sequence, after)) {
    for (const row of rows) {
      walk.take(row, flawOfRow, row.sequence);
      checkEnd();
    }
    options.onProgress?.(walk.next() - 1);
    options.signal?.throwIfAborted();
  }
  if (head.sequence < after) {
    const reason = `the chain's head counts ${head.sequence} events, but there were ${after}: the tail was cut`;
    walk.fail({ firstSequence: head.sequence + 1, lastSequence: after, reason });
  } else if (walk.next() <= head.sequence) {
    const reason = `the chain's head counts ${head.sequence} events: the tail was cut`;
    walk.fail({ firstSequence: walk.next(), lastSequence: head.sequence, reason });
  } else if (walk.lastHash()?.equals(head.hash) === false) {
    const sequence = Math.max(head.sequence, 1);
    walk.fail({
      firstSequence: sequence,
      lastSequence: sequence,
      reason: "the hash of the chain's head differs from the hash of its last event",
    });
  }
  for (const stray of await findStrays(db, chain)) {
    walk.fail({ ...stray, reason: 'an event is stored outside the chain' });
  }
  return { ...walk.end(), archivedEvents: last?.last_sequence ?? 0 };
}
