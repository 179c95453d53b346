import { createReadStream } from 'node:fs';
import { type FileHandle, open, stat } from 'node:fs/promises';
import { readConfig } from '../config/config.ts';
import { organizationExists } from '../credentials/store.ts';
import { createSecretText } from '../crypto/secret-text.ts';
import { connect } from '../database/client.ts';
import { createDatabaseClock } from '../database/clock.ts';
import { confirmInstallation } from '../database/installation.ts';
import { requireCurrentSchema } from '../database/migrator.ts';
import type { Actor } from '../domain/actor.ts';
import { type ImportOutcome, importBatch, type PresentState, type Rehearsal } from '../keys/import-batches.ts';
import { type ImportEntry, maxImportEntries } from '../keys/import-commands.ts';
import { readImportEntry } from '../keys/import-input.ts';
import { enqueueDeliveries } from '../webhooks/enqueue-deliveries.ts';
import type { ImportOptions } from './import.ts';
import { columnOf, csvColumns, type Format, type Line, readLines, UnreadableFile } from './import-lines.ts';
import { locate } from './locate.ts';
import { counted, print, wrong } from './print.ts';
import { type Progress, showProgress } from './progress.ts';

const connectTimeoutMs = 10_000;
const queryTimeoutMs = 120_000;

const actor: Actor = { type: 'system', id: 'import', name: 'import', email: null };

/** Imports the keys of a file in batches, each in a transaction, so that a second run continues after a failure. */
export async function importFile(
  env: NodeJS.ProcessEnv,
  file: string,
  options: ImportOptions & { format: Format },
): Promise<void> {
  const { organization: organizationId, format } = options;
  const config = readConfig(env);
  const source = await openSource(file);
  const { url, keyring } = await locate(config);
  const client = connect({ url, poolSize: 2, timeoutMs: queryTimeoutMs, connectTimeoutMs });
  const report = new Report(options.dryRun === true, showProgress('Importing bytes:'));
  let errors: FileHandle | undefined;
  try {
    await requireCurrentSchema(client.db);
    await confirmInstallation(client.db, { tokenPrefix: config.TOKEN_PREFIX, keyring });
    if (!(await organizationExists(client.db, organizationId))) {
      throw new Error(`There is no organization ${organizationId} in this database. Nothing was imported.`);
    }
    if (options.errors !== undefined) errors = await createNew(options.errors);
    const { lines, header } = readLines(format, source.chunks);
    const reading = { secrets: createSecretText(config.TOKEN_PREFIX), tokenPrefix: config.TOKEN_PREFIX };
    const transactor = { db: client.db, keyring, clock: createDatabaseClock(), onAppended: enqueueDeliveries };
    const by = { actor, organizationId, request: null };
    const rehearsal: Rehearsal | undefined = options.dryRun ? { digests: new Set(), places: new Map() } : undefined;
    let headerIsWritten = false;

    const importLines = async (batch: readonly Line[]) => {
      const read = batch.map((line) => readEntry(line, reading));
      const entries = read.flatMap((found) => ('entry' in found ? [found.entry] : []));
      const outcomes = (await importBatch({ transactor, by, rehearsal }, entries)).values();
      for (const [index, line] of batch.entries()) {
        const found = read[index];
        const outcome = found !== undefined && 'flaws' in found ? unfit(found.flaws) : outcomes.next().value;
        if (outcome === undefined) throw new Error('a line of the file has no outcome');
        report.add(line, outcome);
        if (outcome.kind !== 'unfit' || errors === undefined || line.raw === '') continue;
        const first = headerIsWritten ? undefined : header();
        headerIsWritten = true;
        await errors.write(`${first === undefined ? '' : `${first}\n`}${line.raw}\n`);
      }
      report.showProgress(source);
    };

    report.showProgress(source);
    let batch: Line[] = [];
    try {
      for await (const line of lines) {
        batch.push(line);
        if (batch.length < maxImportEntries) continue;
        const full = batch;
        batch = [];
        await importLines(full);
      }
    } catch (error) {
      if (!(error instanceof UnreadableFile)) throw error;
      await importLines(batch);
      batch = [];
      report.stop(error.message);
    }
    await importLines(batch);
    report.finish(file);
  } catch (error) {
    report.fail();
    throw error;
  } finally {
    await errors?.close();
    await client.close();
  }
}

interface Source {
  chunks: AsyncIterable<Buffer>;
  /** Undefined for standard input. */
  totalBytes: number | undefined;
  readBytes: number;
}

async function openSource(file: string): Promise<Source> {
  const source: Source = {
    chunks: counting(file === '-' ? process.stdin : createReadStream(file)),
    totalBytes: file === '-' ? undefined : (await stat(file)).size,
    readBytes: 0,
  };
  async function* counting(chunks: AsyncIterable<Buffer>) {
    for await (const chunk of chunks) {
      source.readBytes += chunk.length;
      yield chunk;
    }
  }
  return source;
}

/** Only for its owner, because it contains tokens. */
async function createNew(file: string): Promise<FileHandle> {
  try {
    return await open(file, 'wx', 0o600);
  } catch (cause) {
    if ((cause as NodeJS.ErrnoException).code !== 'EEXIST') throw cause;
    throw new Error(`${file} exists already. Give --errors another name. Nothing was imported.`, { cause });
  }
}

interface Flaw {
  path: string;
  message: string;
}

function readEntry(
  { read }: Line,
  reading: Parameters<typeof readImportEntry>[1],
): { entry: ImportEntry } | { flaws: Flaw[] } {
  if ('flaw' in read) return { flaws: [{ path: read.path, message: read.flaw }] };
  const normalized = withHexDigest(read.entry);
  if ('flaws' in normalized) return normalized;
  const found = readImportEntry(normalized.entry, reading);
  return 'flaws' in found ? found : { entry: found };
}

const hexDigest = /^[0-9a-f]{64}$/i;
/** 32 bytes in base64 or base64url. */
const base64Digest = /^[\w+/-]{43}=?$/;

/** Other systems export digests in base64. */
function withHexDigest(entry: unknown): { entry: unknown } | { flaws: Flaw[] } {
  if (typeof entry !== 'object' || entry === null || !('sha256' in entry)) return { entry };
  const { sha256 } = entry;
  if (typeof sha256 !== 'string' || hexDigest.test(sha256)) return { entry };
  if (base64Digest.test(sha256)) return { entry: { ...entry, sha256: Buffer.from(sha256, 'base64').toString('hex') } };
  const message = sha256.startsWith('$')
    ? 'is a password hash (such as bcrypt or argon2), by which no key can be found; docs/migration.md has what to do instead'
    : 'must be a SHA-256: 64 hex digits, or 32 bytes in base64 or base64url';
  return { flaws: [{ path: 'sha256', message }] };
}

function unfit(problems: Flaw[]): ImportOutcome {
  return { kind: 'unfit', problems };
}

const knownNames = new Set([...csvColumns, 'rateLimit', 'requests', 'windowSeconds']);

/** A long unknown name may be a token, for example if a JSON object has tokens as names. */
const longestUnknownName = 15;

function printable(path: string): string {
  const steps = columnOf(path).split('.');
  return steps.map((step) => (knownNames.has(step) || step.length <= longestUnknownName ? step : '…')).join('.');
}

class Report {
  readonly #isDryRun: boolean;
  readonly #progress: Progress;
  readonly #present: Record<PresentState, number> = { same: 0, different: 0, deleted: 0, repeated: 0 };
  #imported = 0;
  #unfit = 0;
  #lines = 0;

  constructor(isDryRun: boolean, progress: Progress) {
    this.#isDryRun = isDryRun;
    this.#progress = progress;
  }

  add({ number }: Line, outcome: ImportOutcome): void {
    this.#lines += 1;
    if (outcome.kind === 'imported') this.#imported += 1;
    else if (outcome.kind === 'present') this.#present[outcome.state] += 1;
    else {
      this.#unfit += 1;
      this.#progress.clear();
      const reasons = outcome.problems.map(
        ({ path, message }) => `${path === '' ? '' : `${printable(path)}: `}${message}`,
      );
      wrong(`Line ${number}: ${reasons.join('; ').replace(/\.$/, '')}.`);
    }
  }

  showProgress({ readBytes, totalBytes }: Source): void {
    if (totalBytes) this.#progress.show({ done: Math.min(readBytes, totalBytes), total: totalBytes });
  }

  /** The file cannot be read to its end. */
  stop(reason: string): void {
    this.#progress.clear();
    wrong(reason);
  }

  finish(file: string): void {
    this.#progress.end();
    if (this.#lines === 0 && process.exitCode === undefined)
      wrong(`${file === '-' ? 'Standard input' : file} contains no keys.`);
    this.#printCounts();
    if (this.#unfit > 0) wrong(`${counted(this.#unfit, 'line does', 'lines do')} not fit.`);
  }

  /** What was done before an error. */
  fail(): void {
    this.#progress.end();
    if (this.#lines === 0) return;
    this.#printCounts();
    if (!this.#isDryRun) print('Run the same command again to continue: keys that are there are skipped.');
  }

  #printCounts(): void {
    const { same, different, deleted, repeated } = this.#present;
    print(
      this.#isDryRun
        ? `${counted(this.#imported, 'key')} would be imported. Nothing was stored.`
        : `${counted(this.#imported, 'key was', 'keys were')} imported.`,
    );
    const there = same + different + deleted;
    if (there > 0)
      print(`${counted(there, 'key is', 'keys are')} already there and ${there === 1 ? 'was' : 'were'} skipped.`);
    if (different > 0)
      print(
        `  ${different} of them ${different === 1 ? 'has' : 'have'} other settings or another owner than in the file.`,
      );
    if (deleted > 0)
      print(
        `  ${deleted} of them ${deleted === 1 ? 'is' : 'are'} deleted, and ${deleted === 1 ? 'stays' : 'stay'} so.`,
      );
    if (repeated > 0)
      print(
        `${counted(repeated, 'line repeats', 'lines repeat')} the token of an earlier line and ${repeated === 1 ? 'was' : 'were'} skipped.`,
      );
  }
}
