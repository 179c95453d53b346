import { mkdirSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import t, { type Test } from 'tap';
import { generateKeyring } from '../src/crypto/keyring.ts';
import { BaseUnavailable, type BuiltImage, buildImage, commandIn, unlessBuildable } from './support/built-image.ts';
import { createDatabase, roleOf } from './support/database.ts';
import { freePort } from './support/ports.ts';
import { request, run } from './support/process.ts';

// The image as buildah builds it from the unmodified Dockerfile. image.test.ts reads the same lines where buildah is missing.

const buildWithinMs = 900_000;
t.setTimeout(buildWithinMs);

t.test('the built image serves as an ordinary user on a read-only root', { skip: unlessBuildable() }, async (t) => {
  t.setTimeout(buildWithinMs);
  const scratch = mkdtempSync(path.join(tmpdir(), 'latchkey-built-'));
  t.teardown(() => rmSync(scratch, { recursive: true, force: true, maxRetries: 10 }));
  const image = buildOrExplain(scratch);
  if (image instanceof BaseUnavailable) {
    t.pass('the image can be built', { skip: image.message });
    return;
  }

  t.test('it has no types, no maps and no tests of libraries', async (t) => {
    const files = readdirSync(path.join(image.root, 'app'), { recursive: true }) as string[];
    t.ok(files.includes('dist/src/cli/latchkey.js'));
    t.same(
      files.filter((file) => /\.d\.[cm]?ts$|\.map$/.test(file)),
      [],
    );
    t.same(
      files.filter((file) => /^node_modules\/(@[^/]+\/)?[^@/]+\/tests?$/.test(file)),
      [],
    );
  });

  t.test('it migrates, makes tokens, is healthy, verifies a key, writes nothing and stops', async (t) => {
    const urls = await createDatabase(t, { migrated: false });
    const secrets = path.join(scratch, 'secrets');
    for (const folder of [secrets, path.join(image.root, 'run/secrets')]) mkdirSync(folder);
    const secret = (name: string, text: string) => {
      writeFileSync(path.join(secrets, name), `${text}\n`);
      return `/run/secrets/${name}`;
    };
    const port = await freePort();
    const env = {
      PORT: String(port),
      APP_ROLE: roleOf(urls.app),
      DATABASE_URL_FILE: secret('database_url', urls.app),
      LATCHKEY_KEYRING_FILE: secret('keyring', generateKeyring(new Date())),
    };
    const owner = { APP_ROLE: roleOf(urls.app), MIGRATION_DATABASE_URL_FILE: secret('owner', urls.owner) };
    const runImage = (args: string[], given: Record<string, string>, program = image.entrypoint) =>
      inImage(t, { image, command: [...program, ...args], env: given, secrets });

    const migrating = runImage(['migrate'], owner);
    t.equal((await migrating.exited).code, 0, migrating.output());
    const making = runImage(['bootstrap', '--organization', 'Example', '--admin-email', 'ada@example.com'], env);
    t.equal((await making.exited).code, 0, making.output());
    const { adminToken = '', verifierToken = '' } = JSON.parse(making.stdout()) as Record<string, string>;

    const service = runImage(image.command, env);
    await service.until(/Server listening at/);
    const health = runImage([], env, image.healthcheck);
    t.equal((await health.exited).code, 0, health.output());
    const writing = runImage(['-c', 'id -u; touch /app/a || touch /tmp/a || echo none'], env, ['/bin/sh']);
    await writing.exited;
    t.match(writing.stdout(), /^1000\nnone$/m);
    const url = `http://127.0.0.1:${port}`;
    const { body: key } = await request(`${url}/v1/keys`, { method: 'POST', token: adminToken, body: {} });
    const body = { key: key.key, permission: 'read' };
    const verdict = await request(`${url}/v1/verify`, { method: 'POST', token: verifierToken, body });
    t.equal(verdict.body.code, 'valid');
    t.equal((await fetch(`${url}/docs/`)).status, 200);
    service.child.kill('SIGTERM');
    t.same(await service.exited, { code: 0, signal: null });
  });
});

function buildOrExplain(scratch: string): BuiltImage | BaseUnavailable {
  try {
    return buildImage(process.cwd(), scratch);
  } catch (error) {
    if (error instanceof BaseUnavailable) return error;
    throw error;
  }
}

interface InImage {
  image: BuiltImage;
  command: string[];
  env: Record<string, string>;
  secrets: string;
}

function inImage(t: Test, { image, command, env, secrets }: InImage) {
  const [program = '', ...args] = commandIn(image, command, env, [secrets]);
  return run(t, program, args);
}
