// Before `npm start` and `npm pack`: builds dist/ if the sources are newer and the compiler is there. In an image that holds
// only dist/ it does nothing. With --always, for `npm run build`, it builds in any case.
import { spawnSync } from 'node:child_process';
import { existsSync, readdirSync, rmSync, statSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { fileURLToPath } from 'node:url';

const root = path.dirname(path.dirname(fileURLToPath(import.meta.url)));
const inputs = ['src', 'migrations', 'package-lock.json', 'tsconfig.json', 'tsconfig.build.json'];
// Written last, so a build that was interrupted is done again.
const stamp = path.join(root, 'dist', '.built');
const compiler = path.join(root, 'node_modules', 'typescript', 'bin', 'tsc');

function newest(file) {
  const stats = statSync(file, { throwIfNoEntry: false });
  if (stats === undefined) return 0;
  if (!stats.isDirectory()) return stats.mtimeMs;
  return Math.max(stats.mtimeMs, ...readdirSync(file).map((name) => newest(path.join(file, name))));
}

const builtAt = existsSync(stamp) ? statSync(stamp).mtimeMs : 0;
const always = process.argv.includes('--always');
const isStale = always || inputs.some((input) => newest(path.join(root, input)) > builtAt);

if (isStale && existsSync(compiler)) {
  // Not to stdout: `npm pack` prints the name of its file there.
  console.error('latchkey: building dist/ from src/, which takes some seconds.');
  rmSync(path.join(root, 'dist'), { recursive: true, force: true });
  const { status } = spawnSync(process.execPath, [compiler, '-p', 'tsconfig.build.json'], {
    cwd: root,
    stdio: ['inherit', process.stderr.fd, 'inherit'],
  });
  if (status !== 0) process.exit(status ?? 1);
  writeFileSync(stamp, '');
} else if (always || (isStale && !existsSync(path.join(root, 'dist', 'src', 'server.js')))) {
  console.error(
    'latchkey: dist/ is not built, and the compiler is a development dependency: run `npm ci && npm run build`, then `npm prune --omit=dev`.',
  );
  process.exit(1);
}
