import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { startEmbeddedPostgres } from '../src/embedded-postgres/start.ts';
import { dbQuery } from './support/database.ts';
import { eventually, request, runEntry } from './support/process.ts';
import { t } from './support/tap.ts';

const requestsASecond = 200;

/** On a busy machine clients wait for each other instead of piling up. */
const atOnce = 100;

t.test(
  'during a restart of Postgres at 200 requests a second, replies are valid or 503, and it recovers within 5 s',
  async (t) => {
    const scratch = await mkdtemp(path.join(tmpdir(), 'latchkey-restart-'));
    t.teardown(() => rm(scratch, { recursive: true, force: true, maxRetries: 10 }));
    let startedAgain = 0;
    const postgres = await startEmbeddedPostgres({
      dataDirectory: scratch,
      copiesDirectory: path.join(scratch, 'programs'),
      port: 0,
      onRestart: ({ error }) => {
        if (error === undefined) startedAgain += 1;
      },
    });
    t.teardown(() => postgres.stop());
    const env = {
      DATABASE_URL: postgres.urls.app,
      MIGRATION_DATABASE_URL: postgres.urls.owner,
      MIGRATE_ON_START: 'true',
      LATCHKEY_KEYRING: `test:${Buffer.alloc(32, 5).toString('base64')}`,
      PORT: '0',
      LOG_LEVEL: 'warn',
      // Twice the default, because a machine that runs many tests is late without a restart, too.
      DATABASE_TIMEOUT_MS: '3000',
      EVENT_LOOP_DELAY_LIMIT_MS: '60000',
    };
    const migrated = runEntry(t, 'cli/latchkey.ts', ['migrate'], { env });
    t.same(await migrated.exited, { code: 0, signal: null });
    const names = ['--organization', 'A', '--admin-email', 'a@b.example'];
    const bootstrap = runEntry(t, 'cli/latchkey.ts', ['bootstrap', ...names], { env });
    await bootstrap.exited;
    const { adminToken = '', verifierToken = '' } = JSON.parse(bootstrap.stdout()) as Record<string, string>;
    const service = runEntry(t, 'server.ts', [], { env: { ...env, LOG_LEVEL: 'info' } });
    const [, url = ''] = await service.until(/Server listening at (http:\/\/[^"]+)"/);
    const { body: key } = await request(`${url}/v1/keys`, { method: 'POST', token: adminToken, body: {} });

    let created = 0;
    let number = 0;
    const call = async (what: string, path: string, init: RequestInit, token: string) => {
      const headers = { authorization: `Bearer ${token}`, 'content-type': 'application/json', ...init.headers };
      const reply = await fetch(url + path, { ...init, headers });
      const text = await reply.text();
      return { what, status: reply.status, body: text === '' ? {} : JSON.parse(text) };
    };
    const input = JSON.stringify({ key: key.key, permission: 'read', cost: 0 });
    const kinds: Array<() => ReturnType<typeof call>> = [
      () => call('verify', '/v1/verify', { method: 'POST', body: input }, verifierToken),
      () =>
        call(
          'fresh',
          '/v1/verify',
          { method: 'POST', body: input, headers: { 'cache-control': 'no-cache' } },
          verifierToken,
        ),
      () => call('list', '/v1/keys', {}, adminToken),
      async () => {
        number += 1;
        const body = JSON.stringify({ email: `p${number}@p.example`, permissions: ['read'] });
        const reply = await call('create', '/v1/partners', { method: 'POST', body }, adminToken);
        if (reply.status === 201) created += 1;
        return reply;
      },
    ];
    const isGood = ({ what, status, body }: Awaited<ReturnType<typeof call>>) =>
      what === 'create' ? status === 201 : status === 200 && (what === 'list' || body.valid === true);

    const answers: Array<{ atMs: number; what: string; status: number; isGood: boolean }> = [];
    const failures: unknown[] = [];
    const underWay = new Set<Promise<void>>();
    let sent = 0;
    const sendNext = () => {
      const atMs = performance.now();
      // One in twenty creates, lists, or reads again; all others verify.
      const kind = kinds[[1, 2, 3][sent % 20] ?? 0] ?? kinds[0];
      sent += 1;
      const pending = Promise.resolve(kind?.())
        .then((reply) => {
          if (reply !== undefined)
            answers.push({ atMs, what: reply.what, status: reply.status, isGood: isGood(reply) });
        })
        .catch((error: unknown) => void failures.push(error))
        .finally(() => underWay.delete(pending));
      underWay.add(pending);
    };
    const startedAtMs = performance.now();
    const clock = setInterval(() => {
      for (
        const due = ((performance.now() - startedAtMs) / 1_000) * requestsASecond;
        sent < due && underWay.size < atOnce;
      )
        sendNext();
    }, 5);
    t.teardown(() => clearInterval(clock));

    await eventually(async () => answers.length > 2 * requestsASecond, 60_000);
    const before = answers.filter(({ isGood }) => !isGood);
    t.same(before, [], 'no failure before the restart');
    process.kill(postgres.pid(), 'SIGINT');
    await eventually(async () => startedAgain === 1);
    const backAtMs = performance.now();
    await delay(7_000);
    clearInterval(clock);
    const stoppedAtMs = performance.now();
    while (underWay.size > 0) await Promise.all(underWay);

    t.same(failures, [], 'each request got a reply');
    const bad = answers.filter((answer) => !answer.isGood);
    t.ok(bad.length > 0, 'the restart had an effect');
    t.same([...new Set(bad.map(({ status }) => status))], [503]);
    t.ok(
      bad.every(({ atMs }) => atMs < backAtMs + 5_000),
      `the last 503 came ${Math.max(...bad.map(({ atMs }) => atMs)) - backAtMs} ms after the restart`,
    );
    const known = answers.filter(({ what }) => what === 'verify');
    const goodOnes = known.filter(({ isGood }) => isGood).length;
    t.ok(
      known.length > 500 && goodOnes > known.length * 0.9,
      `a known key stays valid: ${goodOnes} of ${known.length}; the others came while its row was read again`,
    );
    t.comment(`${Math.round(sent / ((stoppedAtMs - startedAtMs) / 1_000))} requests a second`);
    const [counts] = await dbQuery(
      postgres.urls.superuser,
      `select (select count(*)::int from partners) as partners,
      (select count(*)::int from history where action = 'partner.created') as recorded`,
    );
    t.ok(Number(counts?.['partners']) >= created, 'nothing acknowledged is lost');
    t.equal(counts?.['recorded'], counts?.['partners'], 'each partner has its event');
    t.match((await call('', '/v1/history/verify', {}, adminToken)).body, { valid: true });
    service.child.kill('SIGTERM');
    t.same(await service.exited, { code: 0, signal: null });
  },
);
