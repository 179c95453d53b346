import type { Db } from '../database/client.ts';
import { chainHash, flawOfLink, installationChain, type Link, parseEvent, type StoredEvent } from './chain.ts';
import { type ChainVerdict, type ChainWalk, walkChain } from './chain-walk.ts';
import type { Checkpoint } from './checkpoints/checkpoint.ts';
import { readEvents } from './store.ts';
import { isCarriedByLine, toEventView } from './views.ts';

/**
 * A history as NDJSON, oldest first. A line is the event's canonical text, with the two hashes put in before its last
 * brace: without them a line is exactly the bytes that were hashed.
 */
export function toExportLine({ canonical, previous_hash, hash }: Link): string {
  const hashes = `"previousHash":"${previous_hash.toString('hex')}","hash":"${hash.toString('hex')}"`;
  return `${canonical.slice(0, -1)},${hashes}}\n`;
}

/**
 * The line of a row. An event that cannot be shown has `"unreadable":true` before the hashes, and, where its text does
 * not fit into a line, what its columns say instead.
 */
function lineOfStored(stored: StoredEvent): string {
  const { canonical, previous_hash, hash } = stored;
  const view = toEventView(stored);
  if (!('unreadable' in view) && canonical !== null) return toExportLine({ canonical, previous_hash, hash });
  const {
    unreadable: _unreadable,
    previousHash: _previousHash,
    hash: _hash,
    ...columns
  } = { unreadable: true, ...view };
  const text = isCarriedByLine(canonical) ? canonical : JSON.stringify(columns);
  return toExportLine({ canonical: `${text.slice(0, -1)},"unreadable":true}`, previous_hash, hash });
}

const lineForm = /^(\{.*?)(?:,"unreadable":true)?,"previousHash":"([0-9a-f]{64})","hash":"([0-9a-f]{64})"\}$/s;

const utf8 = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true });

function parseExportLine(line: Buffer): Link | undefined {
  const [, canonical, previousHash = '', hash = ''] = lineForm.exec(decode(line) ?? '') ?? [];
  if (canonical === undefined) return undefined;
  return {
    canonical: `${canonical}}`,
    previous_hash: Buffer.from(previousHash, 'hex'),
    hash: Buffer.from(hash, 'hex'),
  };
}

function decode(line: Buffer): string | undefined {
  try {
    return utf8.decode(line);
  } catch {
    return undefined;
  }
}

/** The lines of a chain up to the event with the number `last`, a batch at a time. */
export async function* exportChain(db: Db, chain: string, last: number): AsyncGenerator<string> {
  for await (const events of readEvents(db, chain, last)) yield events.map(lineOfStored).join('');
}

interface ExportOptions {
  /** Which chain it should be; where it is left out the first event says so. */
  chain?: string | undefined;
  checkpointsOf?: (chain: string) => readonly Checkpoint[];
  /** Called with the number of bytes that have been checked. */
  onProgress?: (bytes: number) => void;
}

/** Recomputes the chain of an export, without any database. Undefined where it is empty and no chain was given. */
export async function verifyExport(
  lines: AsyncIterable<Buffer>,
  { chain, checkpointsOf = () => [], onProgress }: ExportOptions = {},
): Promise<ChainVerdict | undefined> {
  const startWalk = (name: string) => walkChain(name, checkpointsOf(name));
  let walk: ChainWalk | undefined = chain === undefined ? undefined : startWalk(chain);
  let bytes = 0;
  for await (const line of lines) {
    const link = parseExportLine(line);
    walk ??= startWalk(chainNamedBy(link));
    walk.take(link, flawOfLink, placeNamedBy(link, walk.next()));
    bytes += line.length + 1;
    onProgress?.(bytes);
  }
  return walk?.end();
}

/** Where even the first line is damaged, its chain is not known. */
function chainNamedBy(link: Link | undefined): string {
  const event = link === undefined ? undefined : parseEvent(link.canonical);
  const chain = event === undefined ? undefined : (event.organizationId ?? installationChain);
  return typeof chain === 'string' ? chain : 'unknown';
}

/** A line has no number beside its text. What is behind a hole is believed where its hash is that of its text. */
function placeNamedBy(link: Link | undefined, next: number): number {
  const sequence = link === undefined ? undefined : parseEvent(link.canonical)?.sequence;
  if (link === undefined || !Number.isSafeInteger(sequence) || Number(sequence) <= next) return next;
  return link.hash.equals(chainHash(link.previous_hash, link.canonical)) ? Number(sequence) : next;
}
