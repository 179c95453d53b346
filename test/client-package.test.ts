import { spawnSync } from 'node:child_process';
import { cpSync, readdirSync, readFileSync, statSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import type { Test } from 'tap';
import { startListening } from './support/hook.ts';
import { scratch } from './support/instance.ts';
import { openShell, pasteSteps, startFolder, stepsOf } from './support/pages.ts';
import { freePort } from './support/ports.ts';
import { eventually, type RunningProcess, run } from './support/process.ts';
import { t } from './support/tap.ts';

// `@latchkey/client` as a backend gets it: packed, and installed into empty projects beside several servers.

t.setTimeout(900_000);

const root = process.cwd();
const entries = ['client', 'fastify', 'express', 'fetch'];

/** Every file and library that an entry imports, directly or indirectly. Types do not count. */
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

t.test('the client imports only general helpers and shared rules of the service, and one library', async (t) => {
  for (const entry of entries) {
    const { files, libraries } = reach(`clients/node/src/${entry}.ts`);
    t.same([...libraries], ['eventsource-parser'], entry);
    for (const file of files) {
      t.match(
        file,
        /^(clients\/node\/src|src\/lib)\/|^src\/domain\/(permissions|rate-limit)\.ts$/,
        `${entry} imports ${file}`,
      );
    }
  }
  t.ok(reach('src/server.ts').libraries.has('pg'), 'a forbidden library would be found');
});

t.test('the service does not contain the client', async (t) => {
  for (const file of reach('src/server.ts').files) t.notMatch(file, /^clients\//);
});

const npmSettings = { npm_config_prefer_offline: 'true', npm_config_audit: 'false', npm_config_fund: 'false' };
const unreachable = /E(NOTFOUND|AI_AGAIN|NOTCACHED|TIMEDOUT|CONNREFUSED|NETUNREACH)\b/;

function runOrThrow(program: string, args: string[], cwd: string): string {
  const env = { PATH: process.env['PATH'], HOME: process.env['HOME'], ...npmSettings };
  const { status, stdout, stderr } = spawnSync(program, args, { cwd, encoding: 'utf8', env });
  if (status !== 0) throw new Error(`${program} ${args.join(' ')}:\n${stdout}${stderr}`);
  return stdout;
}

/** The file that the README's command packs. */
const tarball = path.join(root, 'clients/node', runOrThrow('npm', ['run', '--silent', 'pack:client'], root).trim());

function bytesIn(folder: string): number {
  return readdirSync(folder, { recursive: true, encoding: 'utf8' })
    .map((name) => statSync(path.join(folder, name)))
    .reduce((sum, stats) => sum + (stats.isFile() ? stats.size : 0), 0);
}

t.test('it is small, and brings one other package', async (t) => {
  t.ok(statSync(tarball).size < 200_000, `${statSync(tarball).size} bytes packed`);
  const folder = await emptyProject(t, [tarball]);
  if (folder === undefined) return;
  const modules = path.join(folder, 'node_modules');
  t.same(
    readdirSync(modules).filter((name) => !name.startsWith('.')),
    ['@latchkey', 'eventsource-parser'],
  );
  t.ok(bytesIn(modules) < 3_000_000, `${bytesIn(modules)} bytes installed`);
  t.comment(`packed ${statSync(tarball).size} bytes, installed ${bytesIn(modules)} bytes`);
  runOrThrow(process.execPath, ['-e', required], folder);
  t.throws(
    () => runOrThrow(process.execPath, ['--input-type=module', '-e', "import '@latchkey/client/src/gate.ts'"], folder),
    /ERR_PACKAGE_PATH_NOT_EXPORTED/,
  );
});

/** CommonJS can load every entry. */
const required = entries
  .map((entry) => `require('@latchkey/client${entry === 'client' ? '' : `/${entry}`}')`)
  .join(';');

/** An empty project with these packages; undefined, and the test is skipped, if npm cannot fetch them. */
async function emptyProject(t: Test, packages: string[]): Promise<string | undefined> {
  const folder = await scratch(t);
  writeFileSync(path.join(folder, 'package.json'), '{"name":"backend","private":true,"type":"module"}');
  try {
    runOrThrow('npm', ['install', '--silent', ...packages], folder);
    return folder;
  } catch (error) {
    if (!unreachable.test(String(error))) throw error;
    t.pass('npm can install', { skip: 'its cache lacks something, and the registry cannot be reached' });
    return undefined;
  }
}

/** A backend in TypeScript: `GET` and `POST /issues`, and `/health` without a key. It listens on PORT. */
interface Server {
  packages: string[];
  source: string;
  /** The folder in docs/examples of the newest version, which all compilers check. */
  example?: string;
}

const options = `{ url: process.env['LATCHKEY_URL'] ?? '', token: process.env['LATCHKEY_TOKEN'] ?? '', cacheSeconds: 60 }`;

const onFastify = `
import fastify from 'fastify';
import { type ApiKey, latchkey } from '@latchkey/client/fastify';
const app = fastify();
await app.register(latchkey, ${options});
app.get('/issues', async (request) => {
  const key: ApiKey | null = request.apiKey;
  return { id: key?.id };
});
app.post('/issues', { config: { permission: 'write' } }, async () => ({ done: true }));
app.get('/health', { config: { permission: 'none' } }, async () => ({ ok: true }));
await app.listen({ host: '127.0.0.1', port: Number(process.env['PORT']) });
`;

const onExpress = `
import express from 'express';
import { type ApiKey, latchkey } from '@latchkey/client/express';
const app = express();
app.get('/health', (_request, response) => void response.json({ ok: true }));
app.use(latchkey(${options}));
app.get('/issues', (request, response) => {
  const key: ApiKey | undefined = request.apiKey;
  response.json({ id: key?.id });
});
app.post('/issues', (_request, response) => void response.json({ done: true }));
app.listen(Number(process.env['PORT']), '127.0.0.1');
`;

const onHono = `
import { serve } from '@hono/node-server';
import { Hono } from 'hono';
import { type ApiKey, latchkey } from '@latchkey/client/fetch';
const keys = latchkey(${options});
const app = new Hono<{ Variables: { apiKey: ApiKey } }>();
app.get('/health', (context) => context.json({ ok: true }));
app.use(async (context, next) => {
  const { apiKey, response } = await keys.check(context.req.raw);
  if (response !== undefined) return response;
  context.set('apiKey', apiKey);
  return next();
});
app.get('/issues', (context) => context.json({ id: context.get('apiKey').id }));
app.post('/issues', (context) => context.json({ done: true }));
serve({ fetch: app.fetch, hostname: '127.0.0.1', port: Number(process.env['PORT']) });
`;

const onConnect = `
import connect from 'connect';
import { createServer } from 'node:http';
import { latchkey } from '@latchkey/client/express';
const app = connect();
app.use('/health', (_request, response) => void response.end('{"ok":true}'));
app.use(latchkey(${options}));
app.use('/issues', (request, response) => {
  response.end(JSON.stringify({ id: (request as { apiKey?: { id: string } }).apiKey?.id }));
});
createServer(app).listen(Number(process.env['PORT']), '127.0.0.1');
`;

const servers: Record<string, Server> = {
  'Fastify 5.0': { packages: ['fastify@5.0.0'], source: onFastify },
  'Fastify 5.3': { packages: ['fastify@5.3.3'], source: onFastify },
  'the newest Fastify': { packages: ['fastify@5'], source: onFastify, example: 'fastify' },
  'Express 4': { packages: ['express@4', '@types/express@4'], source: onExpress },
  'Express 5': { packages: ['express@5', '@types/express@5'], source: onExpress, example: 'express' },
  Connect: { packages: ['connect@3', '@types/connect@3'], source: onConnect },
  Hono: { packages: ['hono@4', '@hono/node-server@1'], source: onHono, example: 'hono' },
};

/** The compilers and module settings with which a backend may read the types. */
const compilers = [
  { compiler: 'typescript', module: 'nodenext', moduleResolution: 'nodenext' },
  { compiler: 'typescript-5', module: 'node16', moduleResolution: 'node16' },
  { compiler: 'typescript-5', module: 'esnext', moduleResolution: 'bundler' },
];

/** @throws with the compiler's output if the types do not fit */
function compileStrictly(folder: string, source: string, by = compilers): void {
  writeFileSync(path.join(folder, 'backend.ts'), source);
  for (const { compiler, ...modules } of by) {
    const compilerOptions = { target: 'es2023', ...modules, strict: true, exactOptionalPropertyTypes: true };
    writeFileSync(
      path.join(folder, 'tsconfig.json'),
      JSON.stringify({ compilerOptions: { ...compilerOptions, types: ['node'] }, files: ['backend.ts'] }),
    );
    const tsc = path.join(root, 'node_modules', compiler, 'bin/tsc');
    runOrThrow(process.execPath, [tsc, '-p', 'tsconfig.json'], folder);
  }
}

t.test('beside each server it compiles strictly, protects, follows deletions and bridges an outage', async (t) => {
  for (const [name, { packages, source, example }] of Object.entries(servers)) {
    await t.test(name, async (t) => {
      const folder = await emptyProject(t, [tarball, '@types/node@20', ...packages]);
      if (folder === undefined) return;
      const newest = compilers.slice(0, 1);
      const misspelt = source.replace("permission: 'write'", "permission: 'wriet'");
      if (misspelt !== source) t.throws(() => compileStrictly(folder, misspelt, newest), /wriet/);
      compileStrictly(folder, source, example === undefined ? newest : compilers);
      await useBackend(t, folder);
      if (example !== undefined) await t.test('its example', (t) => runExample(t, folder, example));
    });
  }
});

async function useBackend(t: Test, folder: string): Promise<void> {
  const service = await startListening(t);
  const { admin } = service;
  const port = await freePort();
  const env = { LATCHKEY_URL: service.url, LATCHKEY_TOKEN: service.verifier.token, PORT: String(port) };
  const backend = run(t, process.execPath, ['backend.js'], { cwd: folder, env });
  const ask = async (key: string | undefined, init: RequestInit = {}) => {
    const headers: Record<string, string> = key === undefined ? {} : { authorization: `Bearer ${key}` };
    const response = await fetch(`http://127.0.0.1:${port}/issues`, { headers, ...init });
    return { status: response.status, type: response.headers.get('content-type'), text: await response.text() };
  };
  const status = async (...args: Parameters<typeof ask>) => (await ask(...args)).status;
  await untilHealthy(backend, port);

  const { body: partner } = await admin.post('/v1/partners', { email: 'r@p.example', permissions: ['read'] });
  const [reading] = partner.keys;
  const { body: own } = await admin.post('/v1/keys', {});
  await eventually(async () => (await status(reading.key)) === 200);
  t.match(JSON.parse((await ask(reading.key)).text), { id: reading.id });
  t.equal(await status(reading.key, { method: 'POST' }), 403, 'a read key cannot write');
  t.equal(await status(own.key, { method: 'POST' }), 200);
  t.match(await ask(undefined), { status: 401, type: /^application\/problem\+json/, text: /"code":"unauthorized"/ });
  t.equal(await status('lk_k_x'), 401);
  const doubled = { headers: { authorization: `Bearer ${own.key}`, 'x-api-key': reading.key } };
  t.equal(await status(undefined, doubled), 400, 'two different keys');

  const tookMs: number[] = [];
  for (let repeat = 0; repeat < 5; repeat++) {
    const { body: key } = await admin.post('/v1/keys', { name: `Deleted ${repeat}` });
    await eventually(async () => (await status(key.key)) === 200);
    await admin.delete(`/v1/keys/${key.id}`);
    const deletedAtMs = performance.now();
    await eventually(async () => (await status(key.key)) === 401, 1_000);
    tookMs.push(performance.now() - deletedAtMs);
  }
  t.ok(Math.max(...tookMs) < 1_000);
  t.comment(`rejected after ${tookMs.map(Math.round).join(', ')} ms`);

  await eventually(async () => (await status(reading.key)) === 200);
  await service.app.close();
  t.equal(await status(reading.key), 200, 'a known key works while Latchkey is gone');
  t.equal(await status('x'.repeat(513)), 401, 'a text that cannot be a key');
  t.match(
    await ask(own.key.replace('lk_k_', 'lk_k_0')),
    { status: 503, text: /"code":"unavailable"/ },
    'an unknown key is not let in',
  );
}

async function untilHealthy(backend: RunningProcess, port: number): Promise<void> {
  await eventually(async () => {
    if (backend.child.exitCode !== null) throw new Error(backend.output());
    return (await fetch(`http://127.0.0.1:${port}/health`).catch(() => undefined))?.ok;
  }, 20_000);
}

const sections: Record<string, string> = { fastify: 'Fastify', express: 'Express', hono: 'Hono' };

/** Runs the example beside what is installed, and pastes the commands of its page. */
async function runExample(t: Test, folder: string, example: string): Promise<void> {
  const service = await startListening(t);
  const { body: own } = await service.admin.post('/v1/keys', {});
  cpSync(`docs/examples/${example}/server.js`, path.join(folder, 'server.js'));
  const [start, ...steps] = await stepsOf('docs/examples/README.md', [sections[example] ?? '', 'Try it']);
  t.match(start?.command, /^npm run build:client\n(.*\n)*cd .* && npm install && npm start\n$/);
  const port = await freePort();
  const env = { LATCHKEY_URL: service.url, LATCHKEY_TOKEN: service.verifier.token, PORT: String(port) };
  const server = run(t, process.execPath, ['server.js'], { cwd: folder, env });
  await untilHealthy(server, port);
  for (const step of steps) step.command = step.command.replaceAll(':3000', `:${port}`);
  await pasteSteps(t, steps, openShell(t, await startFolder(t, service)));
  const ask = (page: string, init: RequestInit = {}) =>
    fetch(`http://127.0.0.1:${port}${page}`, {
      ...init,
      headers: { 'x-api-key': own.key, 'content-type': 'application/json' },
    });
  const created = await ask('/issues', { method: 'POST', body: '{"title":"The window is stuck"}' });
  t.match({ status: created.status, body: await created.json() }, { status: 201, body: { createdBy: own.id } });
  const found = await ask('/issues/search', { method: 'POST', body: '{"text":"window"}' });
  t.match(await found.json(), { data: [{ title: 'The window is stuck' }] });
  t.equal((await ask('/issues', { method: 'POST', body: '{}' })).status, 400);
  server.child.kill('SIGTERM');
  t.match(await server.exited, { code: 0 }, 'nothing prevents its end');
}
