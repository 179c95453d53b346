import { readdirSync, readFileSync } from 'node:fs';
import path from 'node:path';
import t from 'tap';

// A file imports from lower ranks or from its own folder, and there are no cycles.

const features = ['organizations', 'access-tokens', 'partners', 'keys', 'rows', 'recovery', 'webhooks'];

/** Lower first. Files at the top of `src` are ranks of their own. */
const ranks: string[][] = [
  ['lib'],
  ['core'],
  ['crypto'],
  ['db'],
  ['auth'],
  ['client'],
  ['fastify'],
  ['http'],
  ['refused-requests'],
  ['history'],
  features,
  ['rekey', 'verification'],
  ['jobs'],
  [
    'secret-files.ts',
    'config.ts',
    'doubtful-variables.ts',
    'logger.ts',
    'metrics.ts',
    'shutdown.ts',
    'telemetry.ts',
    'bootstrap.ts',
    'token-crypto.ts',
    'app.ts',
  ],
  ['embedded-instance.ts'],
  ['service.ts'],
  ['cli'],
  ['server.ts'],
];

/** What one feature may take from another: its commands and rules inside one transaction, and the shape it shows. */
const sharedByFeatures = /\/([a-z]+-)?(commands|store|mint|views|policy)\.ts$/;

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

t.test('imports go to lower ranks or stay in their folder', async (t) => {
  for (const [file, targets] of importsOf) {
    for (const target of targets.filter((target) => target.startsWith('src/'))) {
      const [from, to] = [rankOf(file), rankOf(target)];
      const sameUnit = unitOf(file) === unitOf(target);
      const betweenFeatures = from === to && features.includes(unitOf(file)) && sharedByFeatures.test(target);
      const topLevelNeighbours = from === to && unitOf(target).endsWith('.ts');
      t.ok(sameUnit || to < from || betweenFeatures || topLevelNeighbours, `${file} imports ${target}`);
    }
  }
});

t.test('nothing imports itself in a circle', async (t) => {
  const done = new Set<string>();
  const visit = (file: string, trail: string[]): void => {
    if (trail.includes(file)) {
      t.fail(`a circle: ${[...trail.slice(trail.indexOf(file)), file].join(' → ')}`);
      return;
    }
    if (done.has(file)) return;
    for (const target of importsOf.get(file) ?? []) visit(target, [...trail, file]);
    done.add(file);
  };
  for (const file of files) visit(file, []);
  t.equal(done.size >= files.length, true);
});

t.test('only config.ts reads the environment, and entries hand it in', async (t) => {
  for (const file of files) {
    if (!readFileSync(file, 'utf8').includes('process.env')) continue;
    t.ok(['src/server.ts', 'src/cli/latchkey.ts'].includes(file), `${file} reads process.env`);
  }
});

t.test('a plaintext leaves its type in few places, all of them known', async (t) => {
  const revealing = files.filter((file) => /\.reveal\(\)/.test(readFileSync(file, 'utf8')));
  t.same(revealing.sort(), [
    'src/access-tokens/routes.ts',
    'src/auth/mint.ts',
    'src/cli/bootstrap.ts',
    'src/crypto/seal.ts',
    'src/crypto/secret-hash.ts',
    'src/crypto/tag.ts',
    'src/embedded-instance.ts',
    'src/http/idempotency.ts',
    'src/keys/routes.ts',
    'src/keys/views.ts',
    'src/webhooks/signature.ts',
    'src/webhooks/views.ts',
  ]);
});

t.test('nothing was compiled when it was installed: Node is all that a machine needs', async (t) => {
  const compiled = readdirSync('node_modules', { recursive: true, encoding: 'utf8' }).filter((name) =>
    name.endsWith(path.join('build', 'config.gypi')),
  );
  t.same(compiled, []);
});

t.test('the address of a client is taken from the facts that were captured on arrival', (t) => {
  const serving = files.filter((file) => !/^src\/(cli|client|fastify|webhooks)\//.test(file));
  const readers = serving.filter((file) => /\brequest\.ips?\b|remoteAddress/.test(readFileSync(file, 'utf8')));
  t.same(readers, ['src/http/request-facts.ts', 'src/http/server.ts']);
  t.end();
});
