import { spawnSync } from 'node:child_process';
import { cpSync, mkdirSync, readdirSync, readFileSync, symlinkSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import type { Test } from 'tap';
import type { Json } from './support/app.ts';
import { type ListeningService, startListening } from './support/hook.ts';
import { scratch } from './support/instance.ts';
import { openShell, pasteSteps, startFolder, stepsOf } from './support/pages.ts';
import { freePort } from './support/ports.ts';
import { run } from './support/process.ts';
import { t } from './support/tap.ts';

// What a backend gets from the package: two entries with types, and only the needed libraries.

const root = process.cwd();

/** All libraries that the hook may bring into a backend. */
const librariesNeeded = ['eventsource-parser', 'fastify', 'fastify-plugin', 'lru-cache'];

/** Every file and library that an entry imports, directly or indirectly. */
function reach(entry: string, found = { files: new Set<string>(), libraries: new Set<string>() }) {
  if (found.files.has(entry)) return found;
  found.files.add(entry);
  for (const [statement, name = ''] of readFileSync(entry, 'utf8').matchAll(
    /^(?:import|export)\b[^;]*?from ['"]([^'"]+)['"];/gm,
  )) {
    if (/^(import|export) type\b/.test(statement)) continue;
    if (name.startsWith('.')) reach(path.join(path.dirname(entry), name), found);
    else if (!name.startsWith('node:')) found.libraries.add(name);
  }
  return found;
}

t.test('the client and hook import only general helpers of the service', async (t) => {
  for (const entry of ['clients/node/src/client.ts', 'clients/node/src/fastify.ts']) {
    const { files, libraries } = reach(entry);
    for (const library of libraries) t.ok(librariesNeeded.includes(library), `${entry} brings ${library}`);
    for (const file of files) {
      t.match(file, /^(clients\/node\/src|src\/lib)\/|^src\/domain\/rate-limit\.ts$/, `${entry} brings ${file}`);
    }
  }
  t.ok(reach('src/server.ts').libraries.has('pg'), 'a forbidden library would be found');
});

const tsc = path.join(root, 'node_modules/typescript/bin/tsc');

function runOrThrow(program: string, args: string[], cwd: string): string {
  // Without the options by which tap loads code into each process.
  const { status, stdout, stderr } = spawnSync(program, args, {
    cwd,
    encoding: 'utf8',
  });
  if (status !== 0) throw new Error(`${program} ${args.join(' ')}:\n${stdout}${stderr}`);
  return stdout;
}

/** Installs the packed package into `node_modules` with only its required libraries. */
function install(directory: string, backend: string): void {
  const at = (...names: string[]) => path.join(directory, ...names);
  runOrThrow(process.execPath, [tsc, '-p', 'tsconfig.build.json', '--outDir', at('package/dist')], root);
  for (const file of ['package.json', 'README.md', 'openapi', 'docs']) {
    cpSync(path.join(root, file), at('package', file), { recursive: true });
  }
  runOrThrow('npm', ['pack', '--ignore-scripts', '--pack-destination', directory], at('package'));
  const [tarball = ''] = readdirSync(directory).filter((name) => name.endsWith('.tgz'));
  const modules = path.join(backend, 'node_modules');
  mkdirSync(path.join(modules, 'latchkey'), { recursive: true });
  runOrThrow('tar', ['-xzf', tarball, '--strip-components=1', '-C', path.join(modules, 'latchkey')], directory);
  for (const library of [...librariesNeeded, '@types/node']) {
    mkdirSync(path.dirname(path.join(modules, library)), { recursive: true });
    symlinkSync(path.join(root, 'node_modules', library), path.join(modules, library));
  }
}

t.test("the installed package works with its types, without Latchkey's other libraries", async (t) => {
  const directory = await scratch(t);
  const at = (...names: string[]) => path.join(directory, ...names);
  install(directory, at('backend'));
  for (const entry of ['client.js', 'fastify.js'].map((name) => at('package/dist/clients/node/src', name))) {
    const { libraries } = reach(entry);
    t.ok(libraries.has('lru-cache') && [...libraries].every((library) => librariesNeeded.includes(library)));
  }
  cpSync(path.join(root, 'docs/examples/issues-api'), at('backend/issues-api'), {
    recursive: true,
    filter: (file) => !file.includes('node_modules'),
  });

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
  runOrThrow(process.execPath, [tsc, '-p', 'tsconfig.json'], at('backend'));
  writeFileSync(at('backend/backend.ts'), typed('reed'));
  t.throws(
    () => runOrThrow(process.execPath, [tsc, '-p', 'tsconfig.json'], at('backend')),
    /reed/,
    'the types are checked',
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
    'the list has the loaded modules',
  );
  for (const library of ['pg', 'argon2', 'kysely', 'ioredis', 'graphile-worker']) {
    t.notOk(
      loaded.some((file: string) => file.includes(`/node_modules/${library}/`)),
      library,
    );
  }
  t.throws(
    () =>
      runOrThrow(process.execPath, ['--input-type=module', '-e', "import 'latchkey/dist/src/app.js'"], at('backend')),
    /ERR_PACKAGE_PATH_NOT_EXPORTED/,
  );

  await t.test('the example works as its page says', (t) => runExample(t, service, at('backend/issues-api'), key));
});

/** @param own a key of the organization */
async function runExample(t: Test, service: ListeningService, directory: string, own: Json): Promise<void> {
  const port = await freePort();
  const server = run(t, process.execPath, ['server.js'], {
    cwd: directory,
    env: { LATCHKEY_URL: service.url, LATCHKEY_TOKEN: service.verifier.token, PORT: String(port) },
  });
  await server.until(/Server listening at/);
  await server.until(/verified from memory/);
  const [, ...steps] = await stepsOf('docs/examples/issues-api/README.md');
  for (const step of steps) step.command = step.command.replaceAll(':3000', `:${port}`);
  await pasteSteps(t, steps, openShell(t, await startFolder(t, service)));
  const send = (path: string, init: RequestInit = {}) =>
    fetch(`http://127.0.0.1:${port}${path}`, {
      ...init,
      headers: { 'x-api-key': own.key, 'content-type': 'application/json' },
    });
  const created = await send('/issues', { method: 'POST', body: '{"title":"The window is stuck"}' });
  t.match({ status: created.status, body: await created.json() }, { status: 201, body: { createdBy: own.id } });
  const found = await send('/issues/search', { method: 'POST', body: '{"text":"window"}' });
  t.match(await found.json(), { data: [{ title: 'The window is stuck' }] });
  t.equal((await fetch(`http://127.0.0.1:${port}/health`)).status, 200);
  server.child.kill('SIGTERM');
  t.match(await server.exited, { code: 0 }, 'nothing delays its end');
}
