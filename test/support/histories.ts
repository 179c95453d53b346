import { spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { Readable } from 'node:stream';
import pg from 'pg';
import type { Test } from 'tap';
import { createNoteSigner } from '../../src/crypto/signed-note.ts';
import { canonicalJson } from '../../src/domain/canonical-json.ts';
import { newId } from '../../src/domain/ids.ts';
import type { Link } from '../../src/history/chain.ts';
import type { ChainVerdict } from '../../src/history/chain-walk.ts';
import {
  type Checkpoint,
  parseCheckpoint,
  publicKeysText,
  signCheckpoint,
} from '../../src/history/checkpoints/checkpoint.ts';
import { toExportLine, verifyExport } from '../../src/history/export.ts';
import { linesOf } from '../../src/lib/lines.ts';
import { dbQuery } from './database.ts';
import { keyringOf } from './keyrings.ts';

/** Histories without a database, and the two verifiers. */

/** @param texts the texts of the chain, from the first event on */
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

/** The checkpoints in a text. */
export function checkpointsIn(text: string): Checkpoint[] {
  return text
    .split(/\n\n(?=latchkey\/)/)
    .map((note) => parseCheckpoint(`${note.trimEnd()}\n`))
    .filter((checkpoint) => checkpoint !== undefined);
}

export interface Finding {
  /** Undefined if everything is valid. */
  firstBad: number | undefined;
  why: string;
  /** The lines that the script prints after the first one. */
  more?: string;
}

/** The result of Latchkey's own verifier. */
export async function findByLatchkey(text: Buffer, checkpoints: readonly Checkpoint[] = []): Promise<Finding> {
  const ofChain = (chain: string) => checkpoints.filter((checkpoint) => checkpoint.chain === chain);
  const [first] = checkpoints;
  const chain = checkpoints.every((one) => one.chain === first?.chain) ? first?.chain : undefined;
  const verdict = await verifyExport(linesOf(Readable.from([text])), { chain, checkpointsOf: ofChain });
  return toFinding(verdict);
}

export function toFinding(verdict: ChainVerdict | undefined): Finding {
  const flaws = verdict?.flaws ?? [];
  return { firstBad: flaws[0]?.firstSequence, why: flaws[0]?.reason ?? '' };
}

export function scratchFolder(t: Test): string {
  const folder = mkdtempSync(path.join(tmpdir(), 'latchkey-history-'));
  t.teardown(() => rmSync(folder, { recursive: true, force: true }));
  return folder;
}

const script = path.resolve('docs/verify-history.py');

/** The results of the independent verifier, from one run. */
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
    const all = stdout.split('\n');
    const at = all.findIndex((one) => one.includes(` ${file}: `));
    const line = all[at];
    const end = all.findIndex((one, index) => index > at && !one.startsWith('bad       '));
    if (line === undefined) throw new Error(`nothing was said about ${file}: ${stdout}`);
    const [, sequence, why = ''] = /first bad event is (-?\d+): (.*)/.exec(line) ?? [];
    if (sequence === undefined && !line.startsWith('ok   ')) throw new Error(line);
    const more = all.slice(at + 1, end < 0 ? undefined : end).join('\n');
    return { firstBad: sequence === undefined ? undefined : Number(sequence), why, more };
  });
  const isAllGood = findings.every(({ firstBad }) => firstBad === undefined);
  if ((status === 0) !== isAllGood) throw new Error(`exit code ${status}: ${stdout}`);
  return findings;
}

/** Runs as a superuser without the triggers that protect history. */
export function dbTamper(url: string, sql: string): Promise<unknown> {
  return dbQuery(
    url,
    `alter table history disable trigger user; ${sql};
     alter table history enable always trigger history_append_only;
     alter table history enable always trigger history_keep`,
  );
}

/** Statements of PL/pgSQL, each with its semicolon, in which `c` is the chain. */
export function inChain(chain: string, statements: string): string {
  return `do $do$ declare c constant text := '${chain}'; r record; previous bytea; begin ${statements} end $do$`;
}

/** For `inChain`: recomputes all hashes from `sequence` on, and the head, so that the chain is consistent in itself. */
export function rehashFrom(sequence: number): string {
  return `
    previous := coalesce((select hash from history where chain = c and sequence = ${sequence} - 1), decode(repeat('00', 32), 'hex'));
    for r in select * from history where chain = c and sequence >= ${sequence} order by sequence loop
      update history set previous_hash = previous, hash = sha256(previous || convert_to(canonical, 'UTF8'))
        where chain = c and sequence = r.sequence returning hash into previous;
    end loop;
    update history_heads set hash = previous where chain = c`;
}

/** Facts that make an event differ from the others; see `dbAddEvents`. */
export type EventFacts = Partial<Record<'action' | 'actorId' | 'keyId' | 'partnerId' | 'at' | 'reason', string>>;

/**
 * Appends events without `history_append`, which would take minutes for a million. The chain is as valid as one that the
 * service wrote. @param factsOf by sequence; without it events differ only in their ids
 */
export async function dbAddEvents(
  superuserUrl: string,
  chain: string,
  count: number,
  factsOf: (sequence: number) => EventFacts = () => ({}),
): Promise<void> {
  const client = new pg.Client(superuserUrl);
  await client.connect();
  try {
    const { rows } = await client.query('select sequence::int, hash from history_heads where chain = $1', [chain]);
    let { sequence, hash } = rows[0] as { sequence: number; hash: Buffer };
    const now = new Date().toISOString();
    let at = now;
    for (let remaining = count; remaining > 0; remaining -= insertedAtOnce) {
      const events: Array<ReturnType<typeof eventOf>> = [];
      const texts: string[] = [];
      const hashes: Buffer[] = [hash];
      for (let index = 0; index < Math.min(remaining, insertedAtOnce); index++) {
        sequence += 1;
        const event = eventOf(chain, sequence, { at: now, ...factsOf(sequence) });
        const text = canonicalJson(event);
        hash = sha256(hash, text);
        at = event.at;
        events.push(event);
        texts.push(text);
        hashes.push(hash);
      }
      await client.query(
        `insert into history (chain, sequence, id, at, action, actor_id, key_id, partner_id, canonical, previous_hash, hash)
         select $1, sequence, id, at, action, actor_id, key_id, partner_id, canonical, previous_hash, hash
         from unnest($2::bigint[], $3::text[], $4::timestamptz[], $5::text[], $6::text[], $7::text[], $8::text[],
           $9::text[], $10::bytea[], $11::bytea[])
           as event (sequence, id, at, action, actor_id, key_id, partner_id, canonical, previous_hash, hash)`,
        [
          chain,
          events.map((event) => event.sequence),
          events.map(({ id }) => id),
          events.map((event) => event.at),
          events.map(({ action }) => action),
          events.map(({ actor }) => actor.id),
          events.map(({ keyId }) => keyId),
          events.map(({ partnerId }) => partnerId),
          texts,
          hashes.slice(0, -1),
          hashes.slice(1),
        ],
      );
    }
    await client.query('update history_heads set sequence = $2, hash = $3, at = $4 where chain = $1', [
      chain,
      sequence,
      hash,
      at,
    ]);
  } finally {
    await client.end();
  }
}

const insertedAtOnce = 2_000;

function eventOf(chain: string, sequence: number, facts: EventFacts & { at: string }) {
  return {
    id: newId('event'),
    organizationId: chain === 'installation' ? null : chain,
    sequence,
    at: facts.at,
    action: facts.action ?? 'key.revealed',
    actor: { type: 'admin', id: facts.actorId ?? newId('token'), name: 'First admin', email: 'ada@example.com' },
    keyId: facts.keyId ?? newId('key'),
    partnerId: facts.partnerId ?? newId('partner'),
    request: { id: `r-${sequence}`, ip: '203.0.113.7', userAgent: 'curl/8.5.0' },
    details: { reason: facts.reason ?? 'The partner lost it', recipient: null },
  };
}

/**
 * A history over five years that is the worst case for filters: values that are frequent alone, and never occur
 * together.
 */
export interface FrequentPairs {
  factsOf(sequence: number): EventFacts;
  /**
   * Two values of each filter. The first ones are frequent, also in pairs; a first value never occurs with a second one.
   */
  values: Record<'keyId' | 'partnerId' | 'actorId' | 'action', [frequent: string, apart: string]>;
  /** Two and three years ago. */
  times: [later: string, earlier: string];
}

/** @param count the number of events, spread over the five years */
export function frequentPairs(count: number): FrequentPairs {
  const yearMs = 365 * 86_400_000;
  const startMs = Date.now() - 5 * yearMs;
  const pair = (kind: 'key' | 'partner' | 'token'): [string, string] => [newId(kind), newId(kind)];
  const values: FrequentPairs['values'] = {
    keyId: pair('key'),
    partnerId: pair('partner'),
    actorId: pair('token'),
    action: ['key.revealed', 'key.rotated'],
  };
  const others = Array.from({ length: 200 }, () => ({
    actorId: newId('token'),
    keyId: newId('key'),
    partnerId: newId('partner'),
    action: 'key.updated',
  }));
  return {
    values,
    times: [new Date(Date.now() - 2 * yearMs).toISOString(), new Date(Date.now() - 3 * yearMs).toISOString()],
    factsOf(sequence) {
      const at = new Date(startMs + Math.floor((5 * yearMs * sequence) / (count + 10))).toISOString();
      const side = sequence % 3;
      if (side === 2) return { at, ...others[Math.floor(sequence / 3) % others.length] };
      const of = (name: keyof FrequentPairs['values']) => values[name][side] ?? '';
      return { at, keyId: of('keyId'), partnerId: of('partnerId'), actorId: of('actorId'), action: of('action') };
    },
  };
}
