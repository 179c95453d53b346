import { spawnSync } from 'node:child_process';
import { chmod, realpath, rm } from 'node:fs/promises';
import path from 'node:path';
import type { Test } from 'tap';
import { scratch } from './support/instance.ts';
import { openShell, pasteSteps, type Step, stepsOf } from './support/pages.ts';
import { freePort, isFree } from './support/ports.ts';
import { type RunningProcess, run } from './support/process.ts';
import { unlessInstalled } from './support/programs.ts';
import { t } from './support/tap.ts';

// The first steps with a fresh clone: the printed lines, then the commands of the pages in order, in one shell. Only
// committed files are in the clone.

const isRoot = process.getuid?.() === 0;
const nobody = { uid: 65_534, gid: 65_534 };
const repository = process.cwd();

/** With a warm cache and an idle machine it takes less than 60 s. */
const firstKeyWithinMs = 180_000;

/** npm uses the registry only for packages that its cache lacks. */
const npmSettings = { npm_config_prefer_offline: 'true', npm_config_audit: 'false', npm_config_fund: 'false' };
const unreachable = /E(NOTFOUND|AI_AGAIN|NOTCACHED|TIMEDOUT|CONNREFUSED|NETUNREACH)\b/;

const skip =
  unlessInstalled('curl') ||
  unlessInstalled('jq') ||
  unlessInstalled('git') ||
  (spawnSync('git', ['-C', repository, 'rev-parse', 'HEAD']).status !== 0 && 'this is no clone of the repository');

// Each test installs all packages.
t.setTimeout(900_000);

t.test('from a fresh clone, with nothing set, everything on the first pages works', { skip }, async (t) => {
  await firstMinutes(t, { identity: isRoot ? nobody : {}, onlyStart: false });
});

t.test(
  'as root, the start and its printed commands also work',
  { skip: skip || (!isRoot && 'only root can try it') },
  async (t) => {
    await firstMinutes(t, { identity: {}, onlyStart: true });
  },
);

interface Newcomer {
  identity: { uid?: number; gid?: number };
  /** Whether the test ends after the first verified key. */
  onlyStart: boolean;
}

async function firstMinutes(t: Test, { identity, onlyStart }: Newcomer): Promise<void> {
  const home = await scratch(t);
  // Without this, Postgres, which does not run as root, would run from a copy.
  await chmod(home, 0o755);
  const env: NodeJS.ProcessEnv = {
    HOME: home,
    TMPDIR: home,
    npm_config_cache: cacheFor(identity, home),
    ...npmSettings,
  };
  const startedAtMs = performance.now();
  const folder = path.join(home, 'latchkey');
  spawnSync('git', ['clone', '--quiet', repository, folder]);
  if (identity.uid !== undefined) spawnSync('chown', ['-R', `${identity.uid}:${identity.gid}`, home]);
  const options = { env, ...identity };
  const terminal = (command: string) => run(t, 'bash', ['-c', command], { cwd: folder, group: true, ...options });

  const pages = {
    readme: await stepsOf(path.join(folder, 'README.md'), ['Try it', 'Use it', 'Protect a backend']),
    quickStart: await stepsOf(path.join(folder, 'docs/quick-start.md')),
    example: await stepsOf(path.join(folder, 'docs/examples/README.md'), ['Fastify', 'Try it']),
    undo: await stepsOf(path.join(folder, 'docs/undo-and-rotation.md')),
  };
  const [start, ...readme] = pages.readme;
  const [backend, ...example] = pages.example;

  t.equal(start?.command, 'npm ci && npm start\n');
  const service = terminal(start?.command ?? '');
  t.teardown(() => removeRootsData(folder));
  try {
    await service.until(/building dist/, firstKeyWithinMs);
    t.equal(service.stdout().includes('Latchkey listens on'), false, 'the build is announced before it runs');
    await service.until(/^curl .*$/m, firstKeyWithinMs);
  } catch (error) {
    if (!unreachable.test(service.output())) throw error;
    t.pass('npm can install', { skip: 'its cache lacks something, and the registry cannot be reached' });
    return;
  }

  const shell = openShell(t, folder, options);
  const printed = service
    .stdout()
    .match(/^Latchkey listens on .*\nThe tokens and a first key are in (.*)\n(curl .*)$/m);
  t.match(JSON.parse(await shell.paste(printed?.[2] ?? '')), { valid: true, code: 'valid' });
  const tookMs = performance.now() - startedAtMs;
  t.comment(`from the clone to the first verified key: ${(tookMs / 1_000).toFixed(1)} s`);
  t.ok(tookMs < firstKeyWithinMs);
  t.match(JSON.parse(await shell.paste(`cat ${printed?.[1]}`)), { key: /^lk_k_/ }, 'the printed path can be pasted');
  if (onlyStart) return;

  await pasteSteps(t, readme, shell);
  await pasteSteps(t, pages.quickStart, shell);
  t.match(backend?.command, /npm start\n$/);
  await startBackend(t, terminal(await withFreePort(backend, example)));
  await pasteSteps(t, example, shell);
  await pasteSteps(t, pages.undo, shell);
}

async function startBackend(t: Test, backend: RunningProcess): Promise<void> {
  await backend.until(/Server listening at/, 120_000);
  await backend.until(/verified from memory/);
  t.notMatch(backend.output(), /"level":(40|50|60)/);
}

/** Replaces the backend's port if 3000 is in use. */
async function withFreePort(backend: Step | undefined, example: Step[]): Promise<string> {
  const command = backend?.command ?? '';
  if (await isFree(3_000)) return command;
  const port = await freePort();
  for (const step of example) step.command = step.command.replaceAll(':3000', `:${port}`);
  return `export PORT=${port}\n${command}`;
}

/** npm's cache; a copy for another user. */
function cacheFor({ uid }: { uid?: number }, home: string): string {
  const cache = spawnSync('npm', ['config', 'get', 'cache'], { encoding: 'utf8', cwd: home }).stdout.trim();
  if (uid === undefined) return cache;
  const copy = path.join(home, 'npm');
  spawnSync('mkdir', [copy]);
  spawnSync('cp', ['-a', '--reflink=auto', path.join(cache, '_cacache'), copy]);
  return copy;
}

async function removeRootsData(folder: string): Promise<void> {
  const data = await realpath(path.join(folder, '.latchkey')).catch(() => undefined);
  if (data?.startsWith('/var/lib/latchkey/')) await rm(data, { recursive: true, force: true, maxRetries: 10 });
}
