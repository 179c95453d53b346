import { createReadStream } from 'node:fs';
import { stat } from 'node:fs/promises';
import { Command, Option } from 'commander';
import { type Config, readConfig } from '../config/config.ts';
import type { Keyring } from '../crypto/keyring.ts';
import type { NoteVerifier } from '../crypto/signed-note.ts';
import { connect, type Db } from '../database/client.ts';
import { createDatabaseClock } from '../database/clock.ts';
import { isKeyringKnown } from '../database/installation.ts';
import { requireCurrentSchema } from '../database/migrator.ts';
import type { ChainVerdict } from '../history/chain-walk.ts';
import { type Checkpoint, checkpointSigners } from '../history/checkpoints/checkpoint.ts';
import { placeOfLine, verifyExport } from '../history/export.ts';
import { type ResumedVerdict, resumeVerification } from '../history/resume.ts';
import { listAuditedChains } from '../history/state-audit.ts';
import { firstDifferences } from '../history/state-differences.ts';
import { readHead } from '../history/store.ts';
import { listVerifiedChains } from '../history/verified-point.ts';
import { type ArchivedFile, type VerifyOptions, verifyChain } from '../history/verify.ts';
import { linesOf } from '../lib/lines.ts';
import { parseChain } from './chain-option.ts';
import { readCheckpoints, readPublicKeys } from './checkpoints.ts';
import { locate } from './locate.ts';
import { counted, print, warning, wrong } from './print.ts';
import { showProgress } from './progress.ts';

interface AuditOptions {
  organization?: string;
  export?: string;
  archive?: string[];
  checkpoint?: string;
  publicKey?: string;
  full?: boolean;
}

/** The valid checkpoints of each chain; undefined if no checkpoint file was given. */
type Signed = ReadonlyMap<string, readonly Checkpoint[]> | undefined;

/** Only a verification with the keyring can be resumed. */
type Verdict = ChainVerdict & Partial<ResumedVerdict>;

const connectTimeoutMs = 10_000;
const queryTimeoutMs = 120_000;

export function auditCommand(env: NodeJS.ProcessEnv): Command {
  const verify = new Command('verify')
    .description(
      'recompute the history; list bad events of each chain and records that differ from their history; exit code 1 if there are any',
    )
    .option(
      '--full',
      'verify every chain from its first event on; default: from where the last verification ended, if the keyring is set and the last full one is at most 7 days old',
    )
    .addOption(new Option('--organization <id>', 'verify only this chain: org_… or installation').argParser(parseChain))
    .option('--export <file>', 'verify an export instead of the database; - for standard input')
    .addOption(
      new Option(
        '--archive <file...>',
        'verify the files of archived events, and that they join the database',
      ).conflicts('export'),
    )
    .option('--checkpoint <file>', 'compare with the checkpoints in this file: a single one, or a CHECKPOINT_FILE')
    .option(
      '--public-key <file>',
      'a trusted copy of /.well-known/latchkey-history-key; default: the keys of the keyring',
    )
    .action((options: AuditOptions) => audit(env, options));
  return new Command('audit').description('verify the history').addCommand(verify);
}

async function audit(env: NodeJS.ProcessEnv, options: AuditOptions): Promise<void> {
  const config = readConfig(env, { keyring: false });
  const signed = await readSigned(config, options);
  if (options.export !== undefined) {
    await verifyFile(options.export, options.organization, signed);
    return;
  }
  const files = await readArchivedFiles(options.archive ?? [], options.organization);
  const { url, keyring } =
    config.DATABASE_URL === undefined ? await locate(config) : { url: config.DATABASE_URL, keyring: config.keyring };
  const client = connect({ url, poolSize: 1, timeoutMs: queryTimeoutMs, connectTimeoutMs });
  try {
    await requireCurrentSchema(client.db);
    await verifyDatabase(client.db, { keyring, signed, files }, options);
  } finally {
    await client.close();
  }
}

async function readSigned(config: Config, { checkpoint, publicKey }: AuditOptions): Promise<Signed> {
  if (checkpoint === undefined) return undefined;
  const verifiers = publicKey === undefined ? await keyringVerifiers(config) : await readPublicKeys(publicKey);
  return readCheckpoints(checkpoint, verifiers);
}

async function keyringVerifiers(config: Config): Promise<NoteVerifier[]> {
  if (config.keyring !== undefined) return checkpointSigners(config.keyring);
  if (config.DATABASE_URL === undefined) {
    const located = await locate(config).catch(() => undefined);
    if (located !== undefined) return checkpointSigners(located.keyring);
  }
  throw new Error('Checkpoints cannot be verified without a key. Use --public-key FILE, or set the keyring.');
}

/** The files of archives by chain, in the order of their events. */
async function readArchivedFiles(
  paths: readonly string[],
  only: string | undefined,
): Promise<ReadonlyMap<string, ArchivedFile[]>> {
  const files = new Map<string, ArchivedFile[]>();
  for (const path of paths) {
    const place = await readFirstPlace(path);
    if (place === undefined) throw new Error(`${path} does not begin with an exported event.`);
    if (only !== undefined && place.chain !== only) throw new Error(`${path} has events of ${place.chain}.`);
    files.set(place.chain, [...(files.get(place.chain) ?? []), { path, first: place.first }]);
  }
  for (const ofChain of files.values()) ofChain.sort((one, other) => one.first - other.first);
  return files;
}

async function readFirstPlace(path: string) {
  for await (const line of linesOf(createReadStream(path) as AsyncIterable<Buffer>)) return placeOfLine(line);
  return undefined;
}

async function verifyFile(file: string, chain: string | undefined, signed: Signed): Promise<void> {
  const total = file === '-' ? undefined : (await stat(file)).size;
  const chunks: AsyncIterable<Buffer> = file === '-' ? process.stdin : createReadStream(file);
  const progress = showProgress('Verifying bytes:');
  const verdict = await verifyExport(linesOf(chunks), {
    chain: chain ?? onlyChainOf(signed),
    checkpointsOf: (name) => signed?.get(name) ?? [],
    onProgress: (done) => total !== undefined && progress.show({ done: Math.min(done, total), total }),
  }).finally(progress.end);
  if (verdict === undefined) wrong(`${file} is empty. Use --organization to name the chain that it should contain.`);
  else printVerdict(verdict, signed, true);
}

/** The chain to expect in an empty export, which does not name its chain. */
function onlyChainOf(signed: Signed): string | undefined {
  const [chain, ...others] = signed?.keys() ?? [];
  return others.length === 0 ? chain : undefined;
}

interface Evidence {
  keyring: Keyring | undefined;
  signed: Signed;
  /** The files of archives. */
  files: ReadonlyMap<string, readonly ArchivedFile[]>;
}

async function verifyDatabase(
  db: Db,
  { keyring, signed, files }: Evidence,
  { organization: chain, full: isFull = false }: AuditOptions,
): Promise<void> {
  const isResumable = keyring !== undefined && (await isKeyringKnown(db, keyring));
  const unstored = (error: unknown) => warning(`the result of the verification is not stored: ${String(error)}`);
  const deps = isResumable ? { db, keyring, clock: createDatabaseClock(), onUnstored: unstored } : undefined;
  const verify = (name: string, how: VerifyOptions): Promise<Verdict> =>
    deps === undefined
      ? verifyChain(db, name, { ...how, keyring })
      : resumeVerification(deps, name, { ...how, isFull: isFull || files.has(name) });
  const listAll = async () => [...(await listAuditedChains(db)), ...(await listVerifiedChains(db))];
  const known = chain === undefined ? [...(await listAll()), ...(signed?.keys() ?? []), ...files.keys()] : [chain];
  const chains = [...new Set(known)];
  let total = 0;
  for (const name of chains) total += (await readHead(db, name)).sequence;
  const progress = showProgress('Verifying events:');
  const verdicts: Verdict[] = [];
  let before = 0;
  try {
    for (const name of chains) {
      const verdict = await verify(name, {
        files: files.get(name),
        checkpoints: signed?.get(name) ?? [],
        onProgress: (done) => progress.show({ done: Math.min(before + done, total), total }),
      });
      verdicts.push(verdict);
      before += verdict.events;
    }
  } finally {
    progress.end();
  }
  for (const verdict of verdicts) {
    printVerdict(verdict, signed, chain !== undefined);
    printArchived(verdict, { signed, files });
  }
  for (const name of chains) await printDifferences(db, name, keyring);
}

/** The longest excerpt of a value. Metadata can be long. */
const longestValue = 200;

async function printDifferences(db: Db, chain: string, keyring: Keyring | undefined): Promise<void> {
  const { differences, hasMore } = await firstDifferences(db, chain, keyring);
  const show = (value: unknown) => JSON.stringify(value).slice(0, longestValue);
  for (const { id, member, history, table } of differences) {
    const difference = `${member} is ${show(table)} in the table, but ${show(history)} in its history`;
    const missing =
      table === null ? 'it is in the history, but not in the table' : 'it is in the table, but not in the history';
    wrong(`${chain}: ${id}: ${member === 'id' ? missing : difference}.`);
  }
  if (hasMore) wrong(`${chain}: there are more differences between the tables and the history.`);
}

function printArchived(
  { chain, archivedEvents: last = 0, flaws }: Verdict,
  { signed, files }: Pick<Evidence, 'signed' | 'files'>,
): void {
  if (last === 0) return;
  if (files.has(chain)) {
    if (flaws.length === 0)
      print(`note    ${chain}: events 1 to ${last} are archived, and were verified in the given files.`);
    return;
  }
  print(`note    ${chain}: events 1 to ${last} are archived, and were not read. --archive verifies their files.`);
  const earlier = (signed?.get(chain) ?? []).filter(({ size }) => size < last).length;
  if (earlier > 0)
    print(`note    ${chain}: ${counted(earlier, 'checkpoint')} of archived events could not be compared.`);
}

function printVerdict(verdict: Verdict, signed: Signed, isOnlyOne: boolean): void {
  const { chain, events, archivedEvents = 0, head, flaws, flawCount, agreeing, verifiedFrom } = verdict;
  const { fullyVerifiedAt, pointFlaw } = verdict;
  if (pointFlaw !== undefined) wrong(`${chain}: ${pointFlaw}.`);
  const [first, ...others] = flaws;
  if (first !== undefined) {
    wrong(`${chain}: the first bad event is ${first.firstSequence}: ${first.reason}.`);
    if (first.lastSequence > first.firstSequence) wrong(`${chain}: this applies up to event ${first.lastSequence}.`);
    for (const { firstSequence, lastSequence, reason } of others) {
      const range =
        firstSequence === lastSequence ? `event ${firstSequence}` : `events ${firstSequence} to ${lastSequence}`;
      wrong(`${chain}: ${range}: ${reason}.`);
    }
    if (flawCount > flaws.length) wrong(`${chain}: ${flawCount - flaws.length} more flaws are not listed.`);
    return;
  }
  const compared = agreeing === 0 ? '' : `, as in ${counted(agreeing, 'checkpoint')}`;
  const isResumed = verifiedFrom > archivedEvents + 1;
  const resumed = isResumed
    ? `, verified from event ${verifiedFrom} on (all at ${fullyVerifiedAt?.toISOString()})`
    : '';
  print(`ok      ${chain}: ${events} events, the last with the hash ${head.toString('hex')}${resumed}${compared}.`);
  if (signed === undefined) return;
  // For a single chain, a missing checkpoint is an error: the given ones were expected to cover it.
  if (agreeing === 0 && isOnlyOne) wrong(`${chain}: no given checkpoint covers this chain.`);
  else if (agreeing === 0) print(`note    ${chain}: no given checkpoint covers this chain.`);
}
