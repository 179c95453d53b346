// Builds src/ and migrations/ into dist/, or into the folder that is named: `node src/build.mjs [folder]`.
import { spawnSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import path from 'node:path';
import { fileURLToPath } from 'node:url';

const root = path.dirname(path.dirname(fileURLToPath(import.meta.url)));
const compiler = path.join(root, 'node_modules', 'typescript', 'bin', 'tsc');
const out = path.resolve(process.argv[2] ?? path.join(root, 'dist'));

if (!existsSync(compiler) || !existsSync(path.join(root, 'node_modules', 'esbuild'))) {
  console.error(
    'latchkey: what builds dist/ is not installed: the compiler and esbuild are development dependencies.\n' +
      'Run `npm ci && npm run build`, and then, to keep only what the service needs, `npm prune --omit=dev`.',
  );
  process.exit(1);
}

const compile = [compiler, '-p', 'tsconfig.build.json', '--outDir', out];
const { status } = spawnSync(process.execPath, compile, { cwd: root, stdio: 'inherit' });
if (status !== 0) process.exit(status ?? 1);

// What backends import is one file each. Node reads every module by way of an object that emits events, and a backend that
// has few modules of its own would answer each request more slowly for having read twenty of ours: see docs/performance.md.
const { build } = await import('esbuild');
const entries = ['src/client/client.js', 'src/fastify/plugin.js'].map((entry) => path.join(out, entry));
await build({
  entryPoints: entries,
  outdir: out,
  outbase: out,
  allowOverwrite: true,
  bundle: true,
  packages: 'external',
  platform: 'node',
  format: 'esm',
  target: 'node20',
  sourcemap: true,
  logLevel: 'warning',
});
