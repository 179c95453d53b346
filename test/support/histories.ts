import { spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { Readable } from 'node:stream';
import type { Test } from 'tap';
import { canonicalJson } from '../../src/core/canonical-json.ts';
import { createNoteSigner } from '../../src/crypto/signed-note.ts';
import type { Link } from '../../src/history/chain.ts';
import type { ChainVerdict } from '../../src/history/chain-walk.ts';
import { type Checkpoint, publicKeysText, signCheckpoint } from '../../src/history/checkpoint.ts';
import { toExportLine, verifyExport } from '../../src/history/export.ts';
import { linesOf } from '../../src/history/lines.ts';
import { keyringOf } from './keyrings.ts';

/** Histories that never were in a database, and the two verifiers that look at them. */

/** @param texts as they stand in the chain, from the first event on */
export function chainOfTexts(texts: readonly string[]): Link[] {
  let previousHash: Buffer = Buffer.alloc(32);
  return texts.map((canonical) => {
    const link = { canonical, previous_hash: previousHash, hash: sha256(previousHash, canonical) };
    previousHash = link.hash;
    return link;
  });
}

export function sha256(previousHash: Buffer, canonical: string): Buffer {
  return createHash('sha256').update(previousHash).update(canonical).digest();
}

export function textOf(chain: string, sequence: number, details: unknown): string {
  const organizationId = chain === 'installation' ? null : chain;
  return canonicalJson({ organizationId, sequence, details });
}

export function exportOf(links: readonly Link[]): Buffer {
  return Buffer.from(links.map(toExportLine).join(''));
}

const signer = createNoteSigner('latchkey', keyringOf('evidence').primary.signSeed);

export const publicKey = publicKeysText([signer]);

export function noteOf(checkpoint: Checkpoint): string {
  return signCheckpoint(checkpoint, [signer]);
}

export interface Finding {
  /** Undefined: all is well. */
  firstBad: number | undefined;
  why: string;
}

/** What Latchkey's own verifier says. */
export async function findByLatchkey(text: Buffer, checkpoints: readonly Checkpoint[] = []): Promise<Finding> {
  const ofChain = (chain: string) => checkpoints.filter((checkpoint) => checkpoint.chain === chain);
  const [first] = checkpoints;
  const chain = checkpoints.every((one) => one.chain === first?.chain) ? first?.chain : undefined;
  const verdict = await verifyExport(linesOf(Readable.from([text])), { chain, checkpointsOf: ofChain });
  return toFinding(verdict);
}

export function toFinding(verdict: ChainVerdict | undefined): Finding {
  return { firstBad: verdict?.flaw?.sequence, why: verdict?.flaw?.what ?? '' };
}

export function scratchFolder(t: Test): string {
  const folder = mkdtempSync(path.join(tmpdir(), 'latchkey-history-'));
  t.teardown(() => rmSync(folder, { recursive: true, force: true }));
  return folder;
}

const script = path.join(path.dirname(path.dirname(import.meta.dirname)), 'docs/verify-history.py');

/** What the verifier that shares no code with Latchkey says; all in one run. */
export function findByScript(
  t: Test,
  exports: readonly Buffer[],
  signed?: { notes: string; publicKey: string },
): Finding[] {
  const folder = scratchFolder(t);
  const write = (name: string, content: Buffer | string) => {
    const file = path.join(folder, name);
    writeFileSync(file, content);
    return file;
  };
  const files = exports.map((content, index) => write(`${index}.ndjson`, content));
  const comparing =
    signed === undefined
      ? []
      : ['--checkpoint', write('checkpoints', signed.notes), '--public-key', write('key', signed.publicKey)];
  const { stdout, stderr, status } = spawnSync('python3', [script, ...files, ...comparing], {
    encoding: 'utf8',
    maxBuffer: 1e8,
  });
  if (stderr !== '') throw new Error(stderr);
  const findings = files.map((file): Finding => {
    const line = stdout.split('\n').find((one) => one.includes(` ${file}: `));
    if (line === undefined) throw new Error(`nothing was said about ${file}: ${stdout}`);
    const [, sequence, why = ''] = /first bad event is (-?\d+): (.*)/.exec(line) ?? [];
    if (sequence === undefined && !line.startsWith('ok   ')) throw new Error(line);
    return { firstBad: sequence === undefined ? undefined : Number(sequence), why };
  });
  const isAllGood = findings.every(({ firstBad }) => firstBad === undefined);
  if ((status === 0) !== isAllGood) throw new Error(`exit code ${status}: ${stdout}`);
  return findings;
}
