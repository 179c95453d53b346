import type { Db } from '../database/client.ts';
import { chainHash, flawOfLink, installationChain, type Link, parseEvent, type StoredEvent } from './chain.ts';
import { type ChainStart, type ChainVerdict, type ChainWalk, walkChain } from './chain-walk.ts';
import type { Checkpoint } from './checkpoints/checkpoint.ts';
import { findEvents, type LinkText, readLinkTexts, readStoredStart } from './store.ts';
import { fitsExportLine, readEvent, toUnreadableView } from './views.ts';

/**
 * An export line: the canonical text with the two hashes before its last brace. Without them the line is exactly what
 * was hashed.
 */
export function toExportLine({ canonical, previous_hash, hash }: Link): string {
  return lineOf(canonical, { previousHash: previous_hash.toString('hex'), hash: hash.toString('hex') });
}

function lineOf(canonical: string, { previousHash, hash }: Pick<LinkText, 'previousHash' | 'hash'>): string {
  return `${canonical.slice(0, -1)},"previousHash":"${previousHash}","hash":"${hash}"}\n`;
}

/**
 * The line of an unreadable event has `"unreadable":true` before the hashes. If its text does not fit on a line, the line
 * has the row's columns instead.
 */
function lineOfUnreadable(stored: StoredEvent): string {
  const { unreadable, previousHash, hash, ...columns } = toUnreadableView(stored);
  const text = fitsExportLine(stored.canonical) ? stored.canonical : JSON.stringify(columns);
  return lineOf(`${text.slice(0, -1)},"unreadable":${unreadable}}`, { previousHash, hash });
}

function isReadable(link: LinkText): link is LinkText & { canonical: string } {
  return readEvent(link) !== undefined;
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

/**
 * The lines of a chain after event number `after` up to event number `last`, batch by batch.
 * @throws Error if events that are due were archived meanwhile: the export would not show that it lacks them
 */
export async function* exportChain(db: Db, chain: string, last: number, after = 0): AsyncGenerator<string> {
  let due = after + 1;
  for await (const links of readLinkTexts(db, chain, last, after)) {
    const first = links[0]?.sequence ?? due;
    if (first > due && Number((await readStoredStart(db, chain))?.sequence) >= first - 1) {
      throw new Error(`Events ${due} to ${first - 1} of ${chain} were archived while they were exported`);
    }
    due = (links.at(-1)?.sequence ?? first) + 1;
    const lines = links.map((link) => (isReadable(link) ? lineOf(link.canonical, link) : undefined));
    const unreadable = links.filter((_, index) => lines[index] === undefined).map(({ sequence }) => sequence);
    if (unreadable.length > 0) {
      const rows = await findEvents(db, chain, unreadable);
      const found = new Map(rows.map((row) => [row.sequence, lineOfUnreadable(row)]));
      for (const [index, { sequence }] of links.entries()) lines[index] ??= found.get(sequence);
    }
    yield lines.join('');
  }
}

interface ExportOptions {
  /** The expected chain. If omitted, the first event decides. */
  chain?: string | undefined;
  /** Starts after this event instead of at the first one; see `walkChain`. */
  from?: ChainStart | undefined;
  checkpointsOf?: (chain: string) => readonly Checkpoint[];
  /** Called with the number of bytes checked so far. */
  onProgress?: (bytes: number) => void;
}

/** Verifies an export without a database. Undefined if the export is empty and no chain was given. */
export async function verifyExport(
  lines: AsyncIterable<Buffer>,
  { chain, from, checkpointsOf = () => [], onProgress }: ExportOptions = {},
): Promise<ChainVerdict | undefined> {
  const startWalk = (name: string) => walkChain(name, { checkpoints: checkpointsOf(name), from });
  let walk: ChainWalk | undefined = chain === undefined ? undefined : startWalk(chain);
  let bytes = 0;
  for await (const line of lines) {
    walk ??= startWalk(chainNamedBy(parseExportLine(line)));
    takeLine(walk, line);
    bytes += line.length + 1;
    onProgress?.(bytes);
  }
  return walk?.end();
}

/** Checks the lines of an export as the next events of a walk. */
export async function takeLines(walk: ChainWalk, lines: AsyncIterable<Buffer>): Promise<void> {
  for await (const line of lines) takeLine(walk, line);
}

function takeLine(walk: ChainWalk, line: Buffer): void {
  const link = parseExportLine(line);
  walk.take(link, flawOfLink, placeNamedBy(link, walk.next()));
}

/** The chain and the sequence number of an export's first event; undefined if the line is no event. */
export function placeOfLine(line: Buffer): { chain: string; first: number } | undefined {
  const link = parseExportLine(line);
  const sequence = link === undefined ? undefined : parseEvent(link.canonical)?.sequence;
  return typeof sequence === 'number' ? { chain: chainNamedBy(link), first: sequence } : undefined;
}

/** Unknown if the first line is damaged. */
function chainNamedBy(link: Link | undefined): string {
  const event = link === undefined ? undefined : parseEvent(link.canonical);
  const chain = event === undefined ? undefined : (event.organizationId ?? installationChain);
  return typeof chain === 'string' ? chain : 'unknown';
}

/** Lines are not numbered. A jump in the sequence is trusted only if the event's hash matches its text. */
function placeNamedBy(link: Link | undefined, next: number): number {
  const sequence = link === undefined ? undefined : parseEvent(link.canonical)?.sequence;
  if (link === undefined || !Number.isSafeInteger(sequence) || Number(sequence) <= next) return next;
  return link.hash.equals(chainHash(link.previous_hash, link.canonical)) ? Number(sequence) : next;
}
