import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import type { Test } from 'tap';
import { type EmbeddedPostgres, startEmbeddedPostgres } from '../src/embedded-postgres/start.ts';
import { startService, type TestService } from './support/app.ts';
import { migrateAs } from './support/database.ts';
import { eventually, runEntry } from './support/process.ts';
import { t } from './support/tap.ts';

// /readyz while a real Postgres is stopped, started, and started as a standby.

interface StoppablePostgres {
  urls: EmbeddedPostgres['urls'];
  stop(): Promise<void>;
  start(as?: 'standby'): Promise<void>;
}

async function ownPostgres(t: Test): Promise<StoppablePostgres> {
  const scratch = await mkdtemp(path.join(tmpdir(), 'latchkey-ready-'));
  t.teardown(() => rm(scratch, { recursive: true, force: true, maxRetries: 10 }));
  const start = (port: number) =>
    startEmbeddedPostgres({ dataDirectory: scratch, copiesDirectory: path.join(scratch, 'programs'), port });
  let current = await start(0);
  t.teardown(() => current.stop());
  const standbySignal = path.join(scratch, 'postgres', 'standby.signal');
  return {
    urls: current.urls,
    stop: () => current.stop(),
    async start(as) {
      if (as === 'standby') await writeFile(standbySignal, '');
      else await rm(standbySignal, { force: true });
      current = await start(current.port);
    },
  };
}

async function ready(service: TestService, query = '') {
  const response = await service.app.inject(`/readyz${query}`);
  return { status: response.statusCode, detail: response.json().detail };
}

const management = '?for=management';
const unreachable = { status: 503, detail: 'The database cannot be reached.' };
const isReady = { status: 200, detail: undefined };

t.test(
  'while Postgres is stopped, a replica is ready while it can verify known keys, and not for management',
  async (t) => {
    const postgres = await ownPostgres(t);
    await migrateAs(postgres.urls);
    const staleMs = 8_000;
    const service = await startService(t, { urls: postgres.urls, state: { staleMs } });
    await eventually(async () => service.verification.feed.isLive());
    const { body: key } = await service.admin.post('/v1/keys', {});
    const verify = () => service.verifier.post('/v1/verify', { key: key.key, permission: 'read' });
    t.match(await verify(), { status: 200, body: { valid: true } });
    t.same(await ready(service), isReady);
    t.same(await ready(service, management), isReady);

    await postgres.stop();
    const stoppedAtMs = performance.now();
    t.same(await ready(service, management), unreachable);
    t.same(await ready(service), isReady);
    t.match(await verify(), { status: 200, body: { valid: true } }, 'verification works while it is ready');
    t.equal((await service.admin.get('/v1/keys')).status, 503);
    service.logLines.length = 0;
    await eventually(async () => (await ready(service)).status === 503);
    const endedAfterMs = performance.now() - stoppedAtMs;
    t.ok(endedAfterMs > staleMs - 3_000 && endedAfterMs < staleMs + 2_000, `ready for ${endedAfterMs} ms`);
    t.same(await ready(service), unreachable);
    await eventually(async () => (await verify()).status === 503);
    const warned = service.logLines.map((line) => JSON.parse(line)).filter(({ msg }) => msg === unreachable.detail);
    t.ok(
      warned.length > 0 && warned.every(({ level, err }) => level === 40 && err === undefined),
      'one line without a stack',
    );
    t.match(warned[0].reason, /ECONNREFUSED|terminated/);

    await postgres.start('standby');
    const standby = { status: 503, detail: /read-only standby.*DATABASE_URL must lead to the primary/ };
    await eventually(async () => (await ready(service)).status === 200);
    t.match(await ready(service, management), standby, 'the standby is named');
    t.match(await verify(), { status: 200, body: { valid: true } }, 'a standby can be read');
    t.match(await service.admin.post('/v1/keys', {}), { status: 503, body: { detail: /read-only standby/ } });
    const env = { DATABASE_URL: postgres.urls.app, LATCHKEY_KEYRING: `t:${Buffer.alloc(32, 7).toString('base64')}` };
    for (const command of ['serve', 'doctor']) {
      const program = runEntry(t, 'cli/latchkey.ts', [command], { env: { ...env, PORT: '0' } });
      t.not((await program.exited).code, 0);
      t.match(program.output(), /read-only standby/, command);
    }

    await postgres.stop();
    await postgres.start();
    await eventually(async () => (await ready(service, management)).status === 200);
    t.same(await ready(service), isReady);
  },
);

t.test('a replica without cached keys is not ready without its database', async (t) => {
  const postgres = await ownPostgres(t);
  await migrateAs(postgres.urls);
  const service = await startService(t, { urls: postgres.urls });
  await eventually(async () => service.verification.feed.isLive());
  await postgres.stop();
  t.same(await ready(service), unreachable);
  await postgres.start();
});

t.test('an unknown value of `for` is a 400', async (t) => {
  const service = await startService(t);
  t.equal((await service.app.inject('/readyz?for=breakfast')).statusCode, 400);
  t.equal((await service.app.inject('/readyz?for=verification')).statusCode, 200);
});
