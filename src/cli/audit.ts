import { createReadStream } from 'node:fs';
import { readFile, stat } from 'node:fs/promises';
import { Command, InvalidArgumentError, Option } from 'commander';
import { type Config, readConfig } from '../config/config.ts';
import type { NoteVerifier } from '../crypto/signed-note.ts';
import { connect, type Db } from '../database/client.ts';
import { requireCurrentSchema } from '../database/migrator.ts';
import { isId } from '../domain/ids.ts';
import { installationChain } from '../history/chain.ts';
import type { ChainVerdict } from '../history/chain-walk.ts';
import { type Checkpoint, checkpointSigners, parsePublicKeys } from '../history/checkpoints/checkpoint.ts';
import { verifyExport } from '../history/export.ts';
import { listAuditedChains } from '../history/state-audit.ts';
import { firstDifferences } from '../history/state-differences.ts';
import { readHead } from '../history/store.ts';
import { verifyChain } from '../history/verify.ts';
import { linesOf } from '../lib/lines.ts';
import { readCheckpoints } from './checkpoints.ts';
import { locate } from './locate.ts';
import { print, wrong } from './print.ts';
import { showProgress } from './progress.ts';

interface VerifyOptions {
  organization?: string;
  export?: string;
  checkpoint?: string;
  publicKey?: string;
}

/** What was signed about each chain; undefined where nothing was given to compare with. */
type Signed = ReadonlyMap<string, readonly Checkpoint[]> | undefined;

const connectTimeoutMs = 10_000;
const queryTimeoutMs = 120_000;

export function auditCommand(env: NodeJS.ProcessEnv): Command {
  const verify = new Command('verify')
    .description(
      'recompute the history, name the bad events of each chain, and each record that is not what its events say; exit code 1 where there is one',
    )
    .addOption(new Option('--organization <id>', 'only this chain: org_… or installation').argParser(parseChain))
    .option('--export <file>', 'an export instead of the database; - for standard input')
    .option('--checkpoint <file>', 'compare with the checkpoints in this file: one, or a CHECKPOINT_FILE')
    .option(
      '--public-key <file>',
      'what /.well-known/latchkey-history-key said when it could be trusted; not given: the keys of the keyring',
    )
    .action((options: VerifyOptions) => audit(env, options));
  return new Command('audit')
    .description('check the history against itself and against checkpoints')
    .addCommand(verify);
}

function parseChain(text: string): string {
  if (text === installationChain || isId('org', text)) return text;
  throw new InvalidArgumentError(`It must be the id of an organization or ${installationChain}.`);
}

async function audit(env: NodeJS.ProcessEnv, options: VerifyOptions): Promise<void> {
  const config = readConfig(env, { keyring: false });
  const signed = await readSigned(config, options);
  if (options.export !== undefined) {
    await verifyFile(options.export, options.organization, signed);
    return;
  }
  const url = config.DATABASE_URL ?? (await locate(config)).url;
  const client = connect({ url, poolSize: 1, timeoutMs: queryTimeoutMs, connectTimeoutMs });
  try {
    await requireCurrentSchema(client.db);
    await verifyDatabase(client.db, options.organization, signed);
  } finally {
    await client.close();
  }
}

async function readSigned(config: Config, { checkpoint, publicKey }: VerifyOptions): Promise<Signed> {
  if (checkpoint === undefined) return undefined;
  const verifiers = publicKey === undefined ? await keyringVerifiers(config) : await readPublicKeys(publicKey);
  return readCheckpoints(checkpoint, verifiers);
}

async function readPublicKeys(file: string): Promise<NoteVerifier[]> {
  const verifiers = parsePublicKeys(await readFile(file, 'utf8'));
  if (verifiers.length > 0) return verifiers;
  throw new Error(`${file} has no line of the form latchkey+…+…, as /.well-known/latchkey-history-key gives it.`);
}

async function keyringVerifiers(config: Config): Promise<NoteVerifier[]> {
  if (config.keyring !== undefined) return checkpointSigners(config.keyring);
  if (config.DATABASE_URL === undefined) {
    const located = await locate(config).catch(() => undefined);
    if (located !== undefined) return checkpointSigners(located.keyring);
  }
  throw new Error('There is no key to check the checkpoints with: give --public-key FILE, or the keyring.');
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
  if (verdict === undefined) wrong(`${file} is empty. --organization says whose history it should be.`);
  else tell(verdict, signed, true);
}

/** An empty export does not say whose it is; checkpoints of one chain do. */
function onlyChainOf(signed: Signed): string | undefined {
  const [chain, ...others] = signed?.keys() ?? [];
  return others.length === 0 ? chain : undefined;
}

async function verifyDatabase(db: Db, chain: string | undefined, signed: Signed): Promise<void> {
  const known = chain === undefined ? [...(await listAuditedChains(db)), ...(signed?.keys() ?? [])] : [chain];
  const chains = [...new Set(known)];
  let total = 0;
  for (const name of chains) total += (await readHead(db, name)).sequence;
  const progress = showProgress('Verifying events:');
  const verdicts: ChainVerdict[] = [];
  let before = 0;
  try {
    for (const name of chains) {
      const verdict = await verifyChain(db, name, {
        checkpoints: signed?.get(name) ?? [],
        onProgress: (done) => progress.show({ done: Math.min(before + done, total), total }),
      });
      verdicts.push(verdict);
      before += verdict.events;
    }
  } finally {
    progress.end();
  }
  for (const verdict of verdicts) tell(verdict, signed, chain !== undefined);
  for (const name of chains) await tellDifferences(db, name);
}

/** Values can be as long as metadata may be; the beginning says which they are. */
const shownOfValue = 200;

async function tellDifferences(db: Db, chain: string): Promise<void> {
  const { differences, hasMore } = await firstDifferences(db, chain);
  const show = (value: unknown) => JSON.stringify(value).slice(0, shownOfValue);
  for (const { id, member, history, table } of differences) {
    const what = member === 'id' ? '' : `${member} is ${show(table)} in the table, and ${show(history)} by its history`;
    const who =
      table === null ? 'it is not in the table, but history has it' : 'it is in the table, but history has none';
    wrong(`${chain}: ${id}: ${member === 'id' ? who : what}.`);
  }
  if (hasMore) wrong(`${chain}: there are more differences between the tables and history.`);
}

function tell(verdict: ChainVerdict, signed: Signed, isOnlyOne: boolean): void {
  const { chain, events, head, flaws, flawCount, agreeing } = verdict;
  const [first, ...others] = flaws;
  if (first !== undefined) {
    wrong(`${chain}: the first bad event is ${first.firstSequence}: ${first.reason}.`);
    if (first.lastSequence > first.firstSequence) wrong(`${chain}: this goes up to event ${first.lastSequence}.`);
    for (const { firstSequence, lastSequence, reason } of others) {
      const range =
        firstSequence === lastSequence ? `event ${firstSequence}` : `events ${firstSequence} to ${lastSequence}`;
      wrong(`${chain}: ${range}: ${reason}.`);
    }
    if (flawCount > flaws.length) wrong(`${chain}: and ${flawCount - flaws.length} more, which are not listed.`);
    return;
  }
  const compared = agreeing === 0 ? '' : `, as ${agreeing} checkpoints say`;
  print(`ok      ${chain}: ${events} events, the last with the hash ${head.toString('hex')}${compared}.`);
  if (signed === undefined) return;
  // Asked about one chain, whoever gave checkpoints believes that they were about it.
  if (agreeing === 0 && isOnlyOne) wrong(`${chain}: there is no checkpoint of it among those that were given.`);
  else if (agreeing === 0) print(`note    ${chain}: there is no checkpoint of it among those that were given.`);
}
