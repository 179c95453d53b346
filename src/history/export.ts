import type { Db } from '../db/client.ts';
import { chainOf, flawOfLink, type Link, parseEvent } from './chain.ts';
import { type ChainVerdict, type ChainWalk, walkChain } from './chain-walk.ts';
import type { Checkpoint } from './checkpoint.ts';
import { readLinks } from './store.ts';

/**
 * A history as NDJSON, oldest first. A line is the event's canonical text, with the two hashes put in before its last
 * brace: whoever takes them out again has exactly the bytes that were hashed.
 */

export function toExportLine({ canonical, previous_hash, hash }: Link): string {
  const hashes = `"previousHash":"${previous_hash.toString('hex')}","hash":"${hash.toString('hex')}"`;
  return `${canonical.slice(0, -1)},${hashes}}\n`;
}

const lineForm = /^(\{.*),"previousHash":"([0-9a-f]{64})","hash":"([0-9a-f]{64})"\}$/s;

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
  for await (const links of readLinks(db, chain, last)) yield links.map(toExportLine).join('');
}

interface ExportOptions {
  /** Which chain it should be; where it is left out the first event says so. */
  chain?: string | undefined;
  checkpointsOf?: (chain: string) => readonly Checkpoint[];
  /** Told how many bytes have been looked at. */
  onProgress?: (bytes: number) => void;
}

/** Recomputes the chain of an export, without any database. Undefined where it is empty and nobody says whose it is. */
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
    if (link === undefined) walk.fail('it is not a line of an export');
    if (link === undefined || !walk.take(link, (place) => flawOfLink(link, place))) break;
    bytes += line.length + 1;
    onProgress?.(bytes);
  }
  return walk?.end();
}

/** Where even the first line is damaged, whose it was is not known, and the flaw is in it. */
function chainNamedBy(link: Link | undefined): string {
  const event = link === undefined ? undefined : parseEvent(link.canonical);
  const chain: unknown = event === undefined ? undefined : chainOf(event.organizationId);
  return typeof chain === 'string' ? chain : 'unknown';
}
