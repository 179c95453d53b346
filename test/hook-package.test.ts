import { spawnSync } from 'node:child_process';
import { cpSync, mkdirSync, readdirSync, readFileSync, symlinkSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import t from 'tap';
import { startListening } from './support/hook.ts';
import { scratch } from './support/instance.ts';
import { run } from './support/process.ts';

// What a backend gets that installs the package: two entries with their types, and of Latchkey's libraries only what they need.

const root = path.dirname(import.meta.dirname);

/** All that the hook may bring into a backend, beside Node itself. */
const librariesNeeded = ['fastify', 'fastify-plugin', 'lru-cache'];

/** Every file and library that an entry imports, by way of whatever. */
function reach(entry: string, found = { files: new Set<string>(), libraries: new Set<string>() }) {
  if (found.files.has(entry)) return found;
  found.files.add(entry);
  for (const [statement, name = ''] of readFileSync(entry, 'utf8').matchAll(
    /^(?:import|export)\b[^;]*?from '([^']+)';/gm,
  )) {
    if (/^(import|export) type\b/.test(statement)) continue;
    if (name.startsWith('.')) reach(path.join(path.dirname(entry), name), found);
    else if (!name.startsWith('node:')) found.libraries.add(name);
  }
  return found;
}

t.test('the entries reach nothing of the service but words and errors', async (t) => {
  for (const entry of ['src/client/client.ts', 'src/fastify/plugin.ts']) {
    const { files, libraries } = reach(entry);
    for (const library of libraries) t.ok(librariesNeeded.includes(library), `${entry} brings ${library}`);
    for (const file of files) {
      t.match(
        file,
        /^src\/(client|fastify)\/|^src\/core\/errors\.ts$|^src\/auth\/credential\.ts$/,
        `${entry} brings ${file}`,
      );
    }
  }
  t.ok(reach('src/server.ts').libraries.has('pg'), 'what is looked for this way would be found');
});

t.test('packed, installed and used, with its types, where no other library of Latchkey’s is', async (t) => {
  const directory = await scratch(t);
  const at = (...names: string[]) => path.join(directory, ...names);
  const must = (program: string, args: string[], cwd: string) => {
    const { status, stdout, stderr } = spawnSync(program, args, { cwd, encoding: 'utf8' });
    if (status !== 0) throw new Error(`${program} ${args.join(' ')}:\n${stdout}${stderr}`);
    return stdout;
  };
  const tsc = path.join(root, 'node_modules/typescript/bin/tsc');
  must(process.execPath, [tsc, '-p', 'tsconfig.build.json', '--outDir', at('package/dist')], root);
  for (const file of ['package.json', 'README.md', 'openapi', 'docs'])
    cpSync(path.join(root, file), at('package', file), { recursive: true });
  must('npm', ['pack', '--ignore-scripts', '--pack-destination', directory], at('package'));
  const [tarball = ''] = readdirSync(directory).filter((name) => name.endsWith('.tgz'));
  mkdirSync(at('backend/node_modules/latchkey'), { recursive: true });
  must('tar', ['-xzf', tarball, '--strip-components=1', '-C', at('backend/node_modules/latchkey')], directory);
  for (const library of [...librariesNeeded, '@types/node']) {
    mkdirSync(path.dirname(at('backend/node_modules', library)), { recursive: true });
    symlinkSync(path.join(root, 'node_modules', library), at('backend/node_modules', library));
  }

  writeFileSync(at('backend/package.json'), '{"name":"backend","private":true,"type":"module"}');
  writeFileSync(
    at('backend/tsconfig.json'),
    JSON.stringify({
      compilerOptions: {
        target: 'es2023',
        module: 'nodenext',
        strict: true,
        noEmit: true,
        exactOptionalPropertyTypes: true,
        types: ['node'],
        preserveSymlinks: true,
        skipLibCheck: true,
      },
      files: ['backend.ts'],
    }),
  );
  const typed = (permission: string) => `
import fastify from 'fastify';
import { createLatchkeyClient, type Verdict } from 'latchkey/client';
import { latchkey, type ApiKey } from 'latchkey/fastify';
const client = createLatchkeyClient({ url: 'http://127.0.0.1:8080', token: 'x' });
export const verdict: Verdict = await client.verify({ key: 'x', permission: '${permission}' });
const app = fastify();
await app.register(latchkey, { url: 'http://127.0.0.1:8080', token: 'x', cacheSeconds: 10 });
app.get('/', { config: { permission: '${permission}' } }, async (request) => {
  const key: ApiKey | null = request.apiKey;
  return { owner: key?.partnerId ?? key?.organizationId };
});
`;
  writeFileSync(at('backend/backend.ts'), typed('read'));
  must(process.execPath, [tsc, '-p', 'tsconfig.json'], at('backend'));
  writeFileSync(at('backend/backend.ts'), typed('reed'));
  t.throws(
    () => must(process.execPath, [tsc, '-p', 'tsconfig.json'], at('backend')),
    /reed/,
    'the types are looked at',
  );

  const service = await startListening(t);
  const { body: key } = await service.admin.post('/v1/keys', {});
  writeFileSync(
    at('backend/backend.mjs'),
    `
import { createRequire } from 'node:module';
import fastify from 'fastify';
import { createLatchkeyClient } from 'latchkey/client';
import { latchkey } from 'latchkey/fastify';
const options = { url: '${service.url}', token: process.env.TOKEN };
const client = createLatchkeyClient(options);
const app = fastify();
await app.register(latchkey, options);
app.get('/', async (request) => ({ id: request.apiKey.id }));
const reply = await app.inject({ url: '/', headers: { 'x-api-key': process.env.KEY } });
const { code } = await client.verify({ key: process.env.KEY, permission: 'write' });
const loaded = Object.keys(createRequire(import.meta.url).cache);
await client.close();
await app.close();
console.log(JSON.stringify({ status: reply.statusCode, id: reply.json().id, code, loaded }));
`,
  );
  const child = run(t, process.execPath, ['backend.mjs'], {
    cwd: at('backend'),
    env: { TOKEN: service.verifier.token, KEY: key.key },
  });
  const { code } = await child.exited;
  t.equal(code, 0, child.output());
  const { loaded, ...seen } = JSON.parse(child.stdout());
  t.same(seen, { status: 200, id: key.id, code: 'valid' });
  t.ok(
    loaded.some((file: string) => file.includes('/fastify/')),
    'the list is the real one',
  );
  for (const library of ['pg', 'argon2', 'kysely', 'ioredis', 'graphile-worker']) {
    t.notOk(
      loaded.some((file: string) => file.includes(`/node_modules/${library}/`)),
      library,
    );
  }
  t.throws(
    () => must(process.execPath, ['--input-type=module', '-e', "import 'latchkey/dist/src/app.js'"], at('backend')),
    /ERR_PACKAGE_PATH_NOT_EXPORTED/,
  );
});
