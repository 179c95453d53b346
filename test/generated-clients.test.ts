import { cp, mkdtemp, rm, symlink } from 'node:fs/promises';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import path from 'node:path';
import type { Test } from 'tap';
import { startService } from './support/app.ts';
import { installGenerators } from './support/generators.ts';
import { run, runScript } from './support/process.ts';
import { t } from './support/tap.ts';

// Clients of further generators, from both documents: compiled strictly and used against a listening service.
// test/clients.test.ts has two more.

/** For each generator its program in node_modules/.bin and its arguments other than `openapi.json`. */
const generators: Record<string, [program: string, ...args: string[]]> = {
  'hey-api': ['openapi-ts', '-i', 'openapi.json', '-o', 'api', '-c', '@hey-api/client-fetch'],
  orval: ['orval', '--input', 'openapi.json', '--output', 'api/api.ts', '--client', 'fetch'],
  'swagger-typescript-api': ['swagger-typescript-api', 'generate', '-p', 'openapi.json', '-o', 'api', '-n', 'api.ts'],
  kubb: ['kubb', 'generate', '--config', 'kubb.config.mjs'],
};

// The first run installs the generators; each takes seconds.
t.setTimeout(900_000);

const installed = await installGenerators(t);
const skip = 'missing' in installed ? installed.missing : false;

for (const document of ['openapi.json', 'openapi-3.0.json']) {
  for (const [name, [program, ...args]] of Object.entries(generators)) {
    t.test(`a client that ${name} generates from ${document} compiles and works`, { skip }, async (t) => {
      if ('missing' in installed) return;
      const folder = await mkdtemp(path.join(tmpdir(), 'latchkey-generated-'));
      t.teardown(() => rm(folder, { recursive: true, force: true }));
      const tour = `${name}.mts`;
      await symlink(path.join(installed.folder, 'node_modules'), path.join(folder, 'node_modules'));
      await cp(path.join('openapi', document), path.join(folder, 'openapi.json'));
      for (const file of ['package.json', 'kubb.config.mjs']) {
        await cp(path.join('test/generators', file), path.join(folder, file));
      }
      await cp(path.join('test/clients', tour), path.join(folder, tour));
      await succeeds(t, path.join('node_modules/.bin', program), args, folder);
      await compiles(t, tour, folder);

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
        verdict: 'valid',
        permission: 'read',
        keys: [{ status: 'active', permission: 'read' }],
        deleted: 'deleted',
        actions: ['key.deleted', 'key.created'],
      });
    });
  }
}

function compiles(t: Test, tour: string, folder: string): Promise<void> {
  const language = ['--strict', '--target', 'es2022', '--lib', 'es2023,dom,dom.iterable'];
  const modules = ['--module', 'esnext', '--moduleResolution', 'bundler', '--allowImportingTsExtensions'];
  const types = ['--types', 'node', '--typeRoots', path.resolve('node_modules/@types')];
  const tsc = path.resolve('node_modules/typescript/bin/tsc');
  return succeeds(t, process.execPath, [tsc, '--noEmit', ...language, ...modules, ...types, tour], folder);
}

async function succeeds(t: Test, program: string, args: string[], cwd: string): Promise<void> {
  const running = run(t, program, args, { cwd });
  t.equal((await running.exited).code, 0, running.output());
}
