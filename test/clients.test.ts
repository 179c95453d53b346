import { cp, mkdtemp, readFile, rm, symlink, writeFile } from 'node:fs/promises';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { pathToFileURL } from 'node:url';
import t, { type Test } from 'tap';
import { startService } from './support/app.ts';
import { runPlainly, runScript } from './support/process.ts';

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

t.test('the TypeScript of docs/integration.md compiles, and tells whose key it is or how to refuse', async (t) => {
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
  const { checkKey } = await import(pathToFileURL(path.join(folder, name)).href);
  const partner = { email: 'team@partner.example', permissions: ['read'] };
  const { body } = await service.admin.post('/v1/partners', partner);
  const [{ key, id }] = body.keys;
  t.match(await checkKey(key, 'read', '203.0.113.7'), { status: 200, partnerId: body.id });
  t.same(await checkKey(key, 'write', '203.0.113.7'), { status: 403 });
  t.same(await checkKey('lk_k_nothing', 'read', '203.0.113.7'), { status: 401 });
  for (const hostile of ['', 'x'.repeat(1_001), 'x'.repeat(16_000), '\u0000', '\ud800', 'clé 🔑']) {
    t.same(await checkKey(hostile, 'read', '203.0.113.7'), { status: 401 }, 'no stranger makes it look broken');
  }
  for (const ip of ['unknown', '', 'fe80::1%eth0', '203.0.113.7:5678', '[2001:db8::1]:443']) {
    t.match(await checkKey(key, 'read', ip), { status: 200 }, ip);
    t.same(await checkKey('lk_k_nothing', 'read', ip), { status: 401 }, ip);
  }
  await service.admin.patch(`/v1/keys/${id}`, { rateLimit: { requests: 1, windowSeconds: 86_400 } });
  await checkKey(key, 'read', '203.0.113.7');
  t.same(await checkKey(key, 'read', '203.0.113.7'), { status: 429 });
  await service.app.close();
  t.same(await checkKey(key, 'read', '203.0.113.7'), { status: 503 });
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
  const running = runPlainly(t, program, args, { cwd });
  t.equal((await running.exited).code, 0, running.output());
}
