import { once } from 'node:events';
import { cp, mkdtemp, readFile, rm, symlink, writeFile } from 'node:fs/promises';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { pathToFileURL } from 'node:url';
import fc from 'fast-check';
import type { Test } from 'tap';
import { tsImport } from 'tsx/esm/api';
import { startService } from './support/app.ts';
import { freePort } from './support/ports.ts';
import { eventually, run, runScript } from './support/process.ts';
import { t } from './support/tap.ts';

// Clients that two generators of different kinds make of the two documents: generated, compiled strictly, and used
// against a service that listens.

interface Generated {
  /** The tour in test/clients. */
  tour: string;
  generate: string[];
}

const generators: Record<string, Generated> = {
  'openapi-typescript with openapi-fetch': {
    tour: 'openapi-fetch.mts',
    generate: [
      '--import=./test/support/typescript-5.mjs',
      'node_modules/openapi-typescript/bin/cli.js',
      'openapi/openapi.json',
      '--output=$FOLDER/api.d.ts',
    ],
  },
  oazapfts: {
    tour: 'oazapfts.mts',
    generate: ['node_modules/oazapfts/dist/cli.js', 'openapi/openapi-3.0.json', '$FOLDER/client.ts'],
  },
};

for (const [name, { tour, generate }] of Object.entries(generators)) {
  t.test(`a client made by ${name} compiles and takes the whole tour`, async (t) => {
    const folder = await clientFolder(t, tour);
    await succeeds(
      t,
      process.execPath,
      generate.map((arg) => arg.replace('$FOLDER', folder)),
    );
    await compiles(t, folder, tour);

    const service = await startService(t);
    await service.app.listen({ port: 0, host: '127.0.0.1' });
    const env = {
      LATCHKEY_URL: `http://127.0.0.1:${(service.app.server.address() as AddressInfo).port}`,
      ADMIN_TOKEN: service.admin.token,
      VERIFIER_TOKEN: service.verifier.token,
    };
    const touring = runScript(t, path.join(folder, tour), [], { env });
    t.equal((await touring.exited).code, 0, touring.output());
    t.same(JSON.parse(touring.stdout()), {
      verdicts: ['valid', 'valid', 'deleted', 'valid'],
      isSameKey: true,
      refusal: 'row_full',
      statuses: ['deleted', 'active'],
      pages: 4,
      actions: [
        'key.restored',
        'key.deleted',
        'key.revealed',
        'key.rotated',
        'key.created',
        'key.created',
        'partner.created',
      ],
    });
  });
}

t.test(
  'the TypeScript of docs/integration.md compiles, and returns the owner of the key or the rejection',
  async (t) => {
    const page = await readFile('docs/integration.md', 'utf8');
    const [, name = '', snippet = ''] = /^```ts\n\/\/ (\S+)\n(.*?)^```$/ms.exec(page) ?? [];
    const folder = await clientFolder(t);
    const types = path.join(folder, 'latchkey-api.d.ts');
    const generate = generators['openapi-typescript with openapi-fetch']?.generate.slice(0, -1) ?? [];
    await succeeds(t, process.execPath, [...generate, `--output=${types}`]);
    await writeFile(path.join(folder, name), snippet);
    await compiles(t, folder, name);

    const service = await startService(t);
    await service.app.listen({ port: 0, host: '127.0.0.1' });
    process.env['LATCHKEY_URL'] = `http://127.0.0.1:${(service.app.server.address() as AddressInfo).port}`;
    process.env['VERIFIER_TOKEN'] = service.verifier.token;
    const { checkKey } = await tsImport(pathToFileURL(path.join(folder, name)).href, import.meta.url);
    const partner = { email: 'team@partner.example', permissions: ['read'] };
    const { body } = await service.admin.post('/v1/partners', partner);
    const [{ key, id }] = body.keys;
    t.match(await checkKey(key, 'read', '203.0.113.7'), { status: 200, partnerId: body.id });
    t.same(await checkKey(key, 'write', '203.0.113.7'), { status: 403 });
    t.same(await checkKey('lk_k_nothing', 'read', '203.0.113.7'), { status: 401 });
    for (const hostile of [
      '',
      'x'.repeat(1_001),
      '\u0000'.repeat(70_000),
      '🔑'.repeat(2e6),
      '\u0000',
      '\ud800',
      'clé 🔑',
    ]) {
      t.same(await checkKey(hostile, 'read', '203.0.113.7'), { status: 401 }, 'no stranger makes it look broken');
    }
    const addresses = ['unknown', 'fe80::1%eth0', '203.0.113.7:5678', '[2001:db8::1]:443', '🔑'.repeat(2e6)];
    for (const ip of [null, undefined, '', ...addresses]) {
      t.match(await checkKey(key, 'read', ip), { status: 200 }, ip?.slice(0, 40) ?? 'none');
      t.same(await checkKey('lk_k_nothing', 'read', ip), { status: 401 });
    }
    const anyText = fc.string({ unit: 'binary', maxLength: 2_000, size: 'max' });
    const isRefused = fc.asyncProperty(anyText, fc.option(anyText), async (hostile, ip) => {
      return (await checkKey(hostile, 'read', ip)).status === 401;
    });
    await fc.assert(isRefused, { numRuns: 300 });
    const backend = createServer(async (request, response) => {
      const { status } = await checkKey(
        String(request.headers['x-api-key'] ?? ''),
        'read',
        request.socket.remoteAddress,
      );
      response.writeHead(status).end();
    }).listen(0, '127.0.0.1');
    t.teardown(() => backend.close());
    await once(backend, 'listening');
    const backendUrl = `http://127.0.0.1:${(backend.address() as AddressInfo).port}`;
    for (const [given, status] of [
      [key, 200],
      ['ÿ'.repeat(15_000), 401],
      ['\t"\\\u0080', 401],
      ['', 401],
    ] as const) {
      t.equal((await fetch(backendUrl, { headers: { 'x-api-key': given } })).status, status);
    }
    await service.admin.patch(`/v1/keys/${id}`, { rateLimit: { requests: 1, windowSeconds: 86_400 } });
    await checkKey(key, 'read', '203.0.113.7');
    t.same(await checkKey(key, 'read', '203.0.113.7'), { status: 429 });
    await service.app.close();
    t.same(await checkKey(key, 'read', '203.0.113.7'), { status: 503 });
  },
);

t.test('the hook of docs/integration.md protects a backend, and survives what strangers send', async (t) => {
  const page = await readFile('docs/integration.md', 'utf8');
  const [, snippet = ''] = /^```js\n(.*?)^```$/ms.exec(page) ?? [];
  const service = await startService(t);
  const url = await service.app.listen({ port: 0, host: '127.0.0.1' });
  const places = { 'latchkey/fastify': path.resolve('src/fastify/plugin.ts'), 'http://127.0.0.1:8080': url };
  const filled = Object.entries(places).reduce((text, [place, here]) => {
    t.ok(text.includes(place), place);
    return text.replace(place, here);
  }, snippet);
  const file = path.join(await clientFolder(t), 'backend.mts');
  await writeFile(file, filled);
  const port = String(await freePort());
  const backend = runScript(t, file, [], { env: { PORT: port, VERIFIER_TOKEN: service.verifier.token } });
  const statusOf = async (headers: Record<string, string>) =>
    (await fetch(`http://127.0.0.1:${port}/issues`, { headers })).status;
  const { body: key } = await service.admin.post('/v1/keys', {});
  await eventually(async () => {
    if (backend.child.exitCode !== null) throw new Error(backend.output());
    return (await statusOf({ 'x-api-key': key.key }).catch(() => 0)) === 200;
  });
  for (const hostile of ['', 'x', 'x'.repeat(15_000), 'ÿ'.repeat(15_000), '"\\{}', 'lk_k_']) {
    for (const forwarded of ['unknown', '1.2.3.4:5', 'x'.repeat(500)]) {
      const status = await statusOf({ 'x-api-key': hostile, 'x-forwarded-for': forwarded });
      t.equal(status, 401, `${hostile.slice(0, 20)} from ${forwarded.slice(0, 20)}`);
    }
  }
});

/** A folder with a tour in it, where there is one, and with this project's packages. */
async function clientFolder(t: Test, tour?: string): Promise<string> {
  const folder = await mkdtemp(path.join(tmpdir(), 'latchkey-client-'));
  t.teardown(() => rm(folder, { recursive: true, force: true }));
  await symlink(path.resolve('node_modules'), path.join(folder, 'node_modules'));
  if (tour !== undefined) await cp(path.join('test', 'clients', tour), path.join(folder, tour));
  return folder;
}

async function compiles(t: Test, folder: string, tour: string): Promise<void> {
  const flags = ['--noEmit', '--strict', '--types', 'node', '--allowImportingTsExtensions'];
  const tsc = path.resolve('node_modules/typescript/bin/tsc');
  await succeeds(t, process.execPath, [tsc, ...flags, '--module', 'nodenext', tour], folder);
}

async function succeeds(t: Test, program: string, args: string[], cwd = process.cwd()): Promise<void> {
  const running = run(t, program, args, { cwd });
  t.equal((await running.exited).code, 0, running.output());
}
