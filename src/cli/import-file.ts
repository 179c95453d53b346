import { createReadStream } from 'node:fs';
import { type FileHandle, open, stat } from 'node:fs/promises';
import { readConfig } from '../config/config.ts';
import { createSecretText } from '../crypto/secret-text.ts';
import { systemActor } from '../domain/actor.ts';
import { type ImportOutcome, importBatch, type PresentState } from '../keys/import-batches.ts';
import { type ImportEntry, maxImportEntries } from '../keys/import-commands.ts';
import { readImportEntry } from '../keys/import-input.ts';
import { organizationExists } from '../organizations/store.ts';
import type { ImportOptions } from './import.ts';
import {
  columnOf,
  csvColumns,
  type Format,
  type Line,
  longestPrintedName,
  readLines,
  UnreadableFile,
} from './import-lines.ts';
import { locate } from './locate.ts';
import { counted, print, wrong } from './print.ts';
import { type Progress, showProgress } from './progress.ts';
import { withInstallation } from './with-installation.ts';

const queryTimeoutMs = 120_000;

const actor = systemActor('import');

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
  const report = new Report(options.dryRun === true, showProgress('Importing bytes:'));
  await withInstallation(config, { url, keyring, queryTimeoutMs }, async (transactor) => {
    if (!(await organizationExists(transactor.db, organizationId))) {
      throw new Error(`There is no organization ${organizationId} in this database. Nothing was imported.`);
    }
    const reader = readLines(format, source.chunks);
    const misfits = options.errors === undefined ? undefined : await MisfitFile.create(options.errors, reader.header);
    const reading = { secrets: createSecretText(config.TOKEN_PREFIX), tokenPrefix: config.TOKEN_PREFIX };
    const deps = {
      transactor,
      by: { actor, organizationId, request: null },
      rehearsal: options.dryRun ? { digests: new Set<string>(), places: new Map() } : undefined,
    };
    report.showProgress(source);
    try {
      for await (const batch of batchesOf(reader.lines, (reason) => report.stop(reason))) {
        for (const { line, outcome } of await importLines(deps, batch, reading)) {
          report.add(line, outcome);
          if (outcome.kind === 'unfit') await misfits?.add(line);
        }
        report.showProgress(source);
      }
    } finally {
      await misfits?.close();
    }
    report.finish(file);
  }).catch((error: unknown) => {
    report.fail();
    throw error;
  });
}

/** Lines by the size of a transaction. If the file cannot be read to its end, those before are a batch too. */
async function* batchesOf(lines: AsyncIterable<Line>, onStop: (reason: string) => void): AsyncGenerator<Line[]> {
  let batch: Line[] = [];
  let stopped: UnreadableFile | undefined;
  try {
    for await (const line of lines) {
      batch.push(line);
      if (batch.length < maxImportEntries) continue;
      yield batch;
      batch = [];
    }
  } catch (error) {
    if (!(error instanceof UnreadableFile)) throw error;
    stopped = error;
  }
  if (batch.length > 0) yield batch;
  if (stopped !== undefined) onStop(stopped.message);
}

async function importLines(
  deps: Parameters<typeof importBatch>[0],
  batch: readonly Line[],
  reading: ReadingOptions,
): Promise<Array<{ line: Line; outcome: ImportOutcome }>> {
  const read = batch.map((line) => ({ line, found: readEntry(line, reading) }));
  const entries = read.flatMap(({ found }) => ('entry' in found ? [found.entry] : []));
  const outcomes = (await importBatch(deps, entries)).values();
  return read.map(({ line, found }) => {
    if ('flaws' in found) return { line, outcome: { kind: 'unfit', problems: found.flaws } };
    const outcome = outcomes.next().value;
    if (outcome === undefined) throw new Error('an entry of an import has no outcome');
    return { line, outcome };
  });
}

interface Source {
  chunks: AsyncIterable<Buffer>;
  /** Undefined for standard input. */
  totalBytes: number | undefined;
  readBytes: number;
}

async function openSource(file: string): Promise<Source> {
  const source: Source = {
    chunks: counting(),
    totalBytes: file === '-' ? undefined : (await stat(file)).size,
    readBytes: 0,
  };
  /** Opens the file when it is read: the error of a stream that nothing reads ends the process. */
  async function* counting() {
    const chunks: AsyncIterable<Buffer> = file === '-' ? process.stdin : createReadStream(file);
    for await (const chunk of chunks) {
      source.readBytes += chunk.length;
      yield chunk;
    }
  }
  return source;
}

/** Keeps the lines that do not fit, as they are in the file. Only its owner may read it, because it contains tokens. */
class MisfitFile {
  readonly #file: FileHandle;
  /** The header line of a CSV file, which comes first. */
  #header: (() => string | undefined) | undefined;

  private constructor(file: FileHandle, header: () => string | undefined) {
    this.#file = file;
    this.#header = header;
  }

  static async create(name: string, header: () => string | undefined): Promise<MisfitFile> {
    try {
      return new MisfitFile(await open(name, 'wx', 0o600), header);
    } catch (cause) {
      if ((cause as NodeJS.ErrnoException).code !== 'EEXIST') throw cause;
      throw new Error(`${name} exists already. Give --errors another name. Nothing was imported.`, { cause });
    }
  }

  async add({ raw }: Line): Promise<void> {
    if (raw === '') return;
    const header = this.#header?.();
    this.#header = undefined;
    await this.#file.write(`${header === undefined ? '' : `${header}\n`}${raw}\n`);
  }

  close(): Promise<void> {
    return this.#file.close();
  }
}

interface Flaw {
  path: string;
  message: string;
}

type ReadingOptions = Parameters<typeof readImportEntry>[1];

function readEntry({ read }: Line, reading: ReadingOptions): { entry: ImportEntry } | { flaws: Flaw[] } {
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

const knownNames = new Set([...csvColumns, 'rateLimit', 'requests', 'windowSeconds']);

function printable(path: string): string {
  const steps = columnOf(path).split('.');
  return steps.map((step) => (knownNames.has(step) || step.length <= longestPrintedName ? step : '…')).join('.');
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
