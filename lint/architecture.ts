import assert from 'node:assert/strict';
import { readdirSync, readFileSync } from 'node:fs';
import path from 'node:path';
import { test } from 'node:test';

// A file imports from lower ranks or from its own folder, and there are no cycles.

const features = [
  'organizations',
  'access-tokens',
  'partners',
  'keys',
  'claims',
  'expiry-notices',
  'rows',
  'recovery',
  'webhooks',
];

/** Lower first. */
const ranks: string[][] = [
  ['lib'],
  ['domain'],
  ['crypto'],
  ['database'],
  ['embedded-postgres'],
  ['credentials'],
  ['oidc'],
  ['http'],
  ['refused-requests'],
  ['history'],
  features,
  ['rekey'],
  ['verification'],
  ['leaks', 'self-service'],
  ['jobs'],
  ['config'],
  ['metrics'],
  ['app.ts'],
  ['service'],
  ['cli'],
  ['server.ts'],
];

/** What one feature may take from another: its commands and rules inside one transaction, and the shape it shows. */
const sharedByFeatures = /\/([a-z]+-)?(commands|store|mint|views|policy|input)\.ts$/;

const files = listFiles('src');
const importsOf = new Map(files.map((file) => [file, readImports(file)]));

function listFiles(directory: string): string[] {
  return readdirSync(directory, { recursive: true, encoding: 'utf8' })
    .filter((name) => name.endsWith('.ts'))
    .map((name) => path.posix.join(directory, name));
}

function readImports(file: string): string[] {
  const text = readFileSync(file, 'utf8');
  return [...text.matchAll(/from '(\.[^']+)'/g)].map(([, target]) =>
    path.posix.normalize(path.posix.join(path.posix.dirname(file), target ?? '')),
  );
}

function unitOf(file: string): string {
  return file.split('/')[1] ?? '';
}

function rankOf(file: string): number {
  const rank = ranks.findIndex((units) => units.includes(unitOf(file)));
  if (rank < 0) throw new Error(`${file} has no rank: give its folder a place in the list`);
  return rank;
}

test('imports go to lower ranks or stay in their folder', () => {
  const wrong = [...importsOf].flatMap(([file, targets]) =>
    targets
      .filter((target) => target.startsWith('src/') && !mayImport(file, target))
      .map((target) => `${file} imports ${target}`),
  );
  assert.deepEqual(wrong, []);
});

function mayImport(file: string, target: string): boolean {
  if (unitOf(file) === unitOf(target)) return true;
  const [from, to] = [rankOf(file), rankOf(target)];
  if (from !== to) return to < from;
  return features.includes(unitOf(file)) && sharedByFeatures.test(target);
}

test('the table of folders in ARCHITECTURE.md lists them in this order', () => {
  const rows = readFileSync('ARCHITECTURE.md', 'utf8').match(/^\| (`src\/[\w.-]+`(, )?)+ \|/gm) ?? [];
  const listed = rows.flatMap((row) => [...row.matchAll(/src\/([\w.-]+)/g)].map(([, unit]) => unit));
  assert.deepEqual(listed, ranks.flat());
});

test('nothing imports itself in a circle', () => {
  const done = new Set<string>();
  const visit = (file: string, trail: string[]): void => {
    if (trail.includes(file)) assert.fail(`a circle: ${[...trail.slice(trail.indexOf(file)), file].join(' → ')}`);
    if (done.has(file)) return;
    for (const target of importsOf.get(file) ?? []) visit(target, [...trail, file]);
    done.add(file);
  };
  for (const file of files) visit(file, []);
  assert.ok(files.length > 100 && done.size >= files.length);
});

const filesWith = (pattern: RegExp, among = files) =>
  among.filter((file) => pattern.test(readFileSync(file, 'utf8'))).sort();

test('only the two entries read the environment, and hand it to `readConfig`', () => {
  assert.deepEqual(filesWith(/process\.env/), ['src/cli/latchkey.ts', 'src/server.ts']);
});

test('a plaintext leaves its type in few places, all of them known', () => {
  assert.deepEqual(filesWith(/\.reveal\(\)/), [
    'src/access-tokens/routes.ts',
    'src/claims/views.ts',
    'src/cli/bootstrap.ts',
    'src/credentials/mint.ts',
    'src/crypto/seal.ts',
    'src/crypto/secret-hash.ts',
    'src/crypto/tag.ts',
    'src/http/idempotency.ts',
    'src/keys/import-routes.ts',
    'src/keys/imported-token.ts',
    'src/keys/routes.ts',
    'src/keys/views.ts',
    'src/service/embedded-instance.ts',
    'src/webhooks/signature.ts',
    'src/webhooks/views.ts',
  ]);
});

test('nothing was compiled when it was installed: Node is all that a machine needs', () => {
  const compiled = readdirSync('node_modules', { recursive: true, encoding: 'utf8' }).filter((name) =>
    name.endsWith(path.join('build', 'config.gypi')),
  );
  assert.deepEqual(compiled, []);
});

test('the address of a client is taken from the facts that were captured on arrival', () => {
  const serving = files.filter((file) => !/^src\/(cli|client|fastify|webhooks)\//.test(file));
  assert.deepEqual(filesWith(/\brequest\.ips?\b|remoteAddress/, serving), [
    'src/http/request-facts.ts',
    'src/http/server.ts',
  ]);
});
