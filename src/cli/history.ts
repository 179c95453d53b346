import { Command, InvalidArgumentError, Option } from 'commander';
import { readConfig } from '../config/config.ts';
import type { Transactor } from '../database/work.ts';
import { archiveEvents, finishArchive, keptDays, planArchive } from '../history/archives/archiving.ts';
import { checkpointSigners } from '../history/checkpoints/checkpoint.ts';
import { runExclusively } from '../jobs/lock.ts';
import { parseChain } from './chain-option.ts';
import { readCheckpoints, readPublicKeys } from './checkpoints.ts';
import { locate } from './locate.ts';
import { print } from './print.ts';
import { showProgress } from './progress.ts';
import { withInstallation } from './with-installation.ts';

interface ArchiveOptions {
  organization: string;
  before: Date;
  to: string;
  checkpoint: string;
  publicKey?: string;
  dryRun?: true;
}

const queryTimeoutMs = 600_000;

export function historyCommand(env: NodeJS.ProcessEnv): Command {
  const archive = new Command('archive')
    .description(
      'move the oldest events of a chain from the database to a file; the service may be running; may be interrupted and run again',
    )
    .addOption(
      new Option('--organization <id>', 'the chain: org_… or installation').argParser(parseChain).makeOptionMandatory(),
    )
    .addOption(
      new Option('--before <day>', `move the events before this day or time, UTC; at least ${keptDays} days ago`)
        .argParser(parseTime)
        .makeOptionMandatory(),
    )
    .requiredOption('--to <file>', 'the file to write; it is not overwritten')
    .requiredOption(
      '--checkpoint <file>',
      'checkpoints that were kept outside of the database, such as a CHECKPOINT_FILE',
    )
    .option(
      '--public-key <file>',
      'a trusted copy of /.well-known/latchkey-history-key; default: the keys of the keyring',
    )
    .option('--dry-run', 'verify the chain, print what would be moved, and change nothing')
    .addHelpText('after', '\nNeeds MIGRATION_DATABASE_URL and the keyring. docs/archiving.md has an example.')
    .action((options: ArchiveOptions) => archiveChain(env, options));
  return new Command('history').description('move old history to files').addCommand(archive);
}

/** @throws InvalidArgumentError */
function parseTime(text: string): Date {
  const time = new Date(text);
  if (/^\d{4}-\d\d-\d\d(T\d\d:\d\d:\d\d(\.\d+)?Z)?$/.test(text) && !Number.isNaN(time.getTime())) return time;
  throw new InvalidArgumentError('Must be a day such as 2025-01-31, or a time such as 2025-01-31T00:00:00Z.');
}

async function archiveChain(env: NodeJS.ProcessEnv, options: ArchiveOptions): Promise<void> {
  const config = readConfig(env);
  const { ownerUrl: url, keyring } = await locate(config);
  await withInstallation(config, { url, keyring, queryTimeoutMs }, async (transactor) => {
    const ran = await runExclusively(url, 'archive_history', () => run(transactor, options));
    if (!ran) throw new Error('Another `latchkey history archive` is running.');
  });
}

async function run(
  transactor: Transactor,
  { organization: chain, before, to: file, checkpoint, publicKey, dryRun }: ArchiveOptions,
): Promise<void> {
  const verifiers = publicKey === undefined ? checkpointSigners(transactor.keyring) : await readPublicKeys(publicKey);
  const checkpoints = (await readCheckpoints(checkpoint, verifiers)).get(chain) ?? [];
  // `wrong` has printed why.
  if (process.exitCode === 1) return;
  const deps = { transactor };
  if (dryRun === undefined) {
    const finished = await finishArchive(deps, { chain, file });
    if (finished !== undefined) {
      print(`ok      ${chain}: the events of an earlier run up to ${finished.last_sequence} were removed.`);
      return;
    }
  }
  const verifying = showProgress('Verifying events:');
  const plan = await planArchive(
    { ...deps, onProgress: (done, total) => verifying.show({ done, total }) },
    { chain, before, checkpoints },
  ).finally(verifying.end);
  if (plan === undefined) {
    print(`ok      ${chain}: no event before ${before.toISOString()} is left to archive.`);
    return;
  }
  const range = `events ${plan.first} to ${plan.last.sequence}`;
  if (dryRun) {
    print(`note    ${chain}: ${range} would be moved to ${file}.`);
    return;
  }
  const removing = showProgress('Removing events:');
  const archive = await archiveEvents({ ...deps, onProgress: (done, total) => removing.show({ done, total }) }, plan, {
    chain,
    file,
  }).finally(removing.end);
  print(
    `ok      ${chain}: ${range} were moved to ${file}: ${archive.file_bytes} bytes with the SHA-256 ` +
      `${archive.file_sha256.toString('hex')}. Keep the file: the database no longer has these events.`,
  );
}
