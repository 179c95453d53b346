import { collectDefaultMetrics, Registry } from 'prom-client';
import { insertJobs, markFailed, markSucceeded } from '../src/jobs/store.ts';
import { startService, type TestService } from './support/app.ts';
import { dbQuery } from './support/database.ts';
import { readMetrics } from './support/metrics.ts';
import { freePort } from './support/ports.ts';
import { eventually, request, run } from './support/process.ts';
import { unlessInstalled } from './support/programs.ts';
import { serve } from './support/served.ts';
import { t } from './support/tap.ts';
import { startReceiver } from './support/webhooks.ts';

const scrape = async ({ app }: Pick<TestService, 'app'>) => {
  const { statusCode, headers, body } = await app.inject('/metrics');
  t.equal(statusCode, 200);
  t.match(headers['content-type'], /^text\/plain; version=0\.0\.4/);
  return readMetrics(body);
};

t.test('metrics show when each job last ran, how it ended, and which are overdue', async (t) => {
  const service = await startService(t);
  const { admin, client, urls } = service;
  await insertJobs(client.db, ['purge_keys', 'fold_usage']);
  await markSucceeded(client.db, 'purge_keys', { count: 3, durationMs: 1_500 });
  await markFailed(client.db, 'fold_usage', 'Error: no');
  const { body: key } = await admin.post('/v1/keys', {});
  await admin.delete(`/v1/keys/${key.id}`);
  await admin.post('/v1/recovery-requests', { keyId: key.id, details: 'By mistake' });

  const nowSeconds = Date.now() / 1_000;
  const { value } = await scrape(service);
  const ofPurge = (name: string) => value(`latchkey_job_${name}`, { name: 'purge_keys' }) ?? 0;
  t.ok(Math.abs(ofPurge('last_success_timestamp_seconds') - nowSeconds) < 60);
  const failedAt = value('latchkey_job_last_failure_timestamp_seconds', { name: 'fold_usage' }) ?? 0;
  t.ok(Math.abs(failedAt - nowSeconds) < 60);
  t.equal(value('latchkey_job_last_success_timestamp_seconds', { name: 'fold_usage' }), undefined);
  t.equal(ofPurge('last_duration_seconds'), 1.5);
  t.equal(ofPurge('last_done'), 3);
  t.equal(value('latchkey_recovery_requests_open'), 1);
  t.equal(value('latchkey_recovery_requests_overdue'), 0);
  t.equal(value('latchkey_database_up'), 1);
  const overdue = async (name: string) => (await scrape(service)).value('latchkey_job_overdue', { name });
  t.equal(await overdue('fold_usage'), 0);
  await dbQuery(
    urls.superuser,
    "update job_runs set first_seen_at = now() - interval '1 day' where name = 'fold_usage'",
  );
  t.equal(await overdue('fold_usage'), 1, 'a job that never ran is overdue');
  t.equal(await overdue('purge_keys'), 0);
  service.later(25 * 3_600_000);
  t.equal((await scrape(service)).value('latchkey_recovery_requests_overdue'), 1);

  await t.test('if the database does not answer, the scrape succeeds without the values', async (t) => {
    await dbQuery(urls.superuser, 'alter table job_runs rename to job_runs_away');
    const { value } = await scrape(service);
    t.equal(value('latchkey_recovery_requests_overdue'), 1, 'the other values are read');
    t.equal(value('latchkey_job_last_done', { name: 'purge_keys' }), undefined, 'no old value is reported');
    t.equal(value('latchkey_database_up'), 0);
    t.match(service.logLines.join(''), 'metrics could not be read');
    await dbQuery(urls.superuser, 'alter table job_runs_away rename to job_runs');
    t.equal((await scrape(service)).value('latchkey_database_up'), 1);
  });
});

t.test('each operation increments its own counter by one', async (t) => {
  const service = await startService(t);
  const { app, admin, verifier, as, verification, hasher } = service;
  await eventually(async () => verification.feed.isLive());
  const { body: key } = await admin.post('/v1/keys', {});
  const verify = (presented: string, others = {}) =>
    verifier.post('/v1/verify', { key: presented, permission: 'read', ...others });
  await verify(key.key);
  const before = await scrape(service);
  const growthOf = async (operation: () => Promise<unknown>, name: string, labels: Record<string, string> = {}) => {
    const from = (await scrape(service)).value(name, labels) ?? 0;
    await operation();
    return ((await scrape(service)).value(name, labels) ?? 0) - from;
  };
  const verifications = (code: string) => ['latchkey_verifications_total', { code }] as const;
  const problems = (code: string) => ['latchkey_problems_total', { code }] as const;
  t.equal(await growthOf(() => verify(key.key), ...verifications('valid')), 1);
  t.equal(await growthOf(() => verify('x'), ...verifications('malformed')), 1);
  t.equal(await growthOf(() => verify(`${key.key.slice(0, 40)}x`), ...verifications('not_found')), 0);
  await admin.post(`/v1/keys/${key.id}/suspend`);
  t.equal(await growthOf(() => verify(key.key), ...verifications('suspended')), 1);
  await admin.post(`/v1/keys/${key.id}/resume`);
  t.equal(await growthOf(() => admin.get('/v1/keys/nothing'), ...problems('not_found')), 1);
  t.equal(await growthOf(() => as('rubbish').get('/v1/keys'), ...problems('token_malformed')), 1);
  t.equal(await growthOf(() => verifier.get('/v1/keys'), ...problems('forbidden')), 1);
  const events = (action: string) => ['latchkey_history_events_total', { action }] as const;
  t.equal(await growthOf(() => admin.patch(`/v1/keys/${key.id}`, { name: 'New' }), ...events('key.updated')), 1);
  t.equal(await growthOf(() => admin.patch(`/v1/keys/${key.id}`, { name: 'New' }), ...events('key.updated')), 0);
  const rejectedCreation = async () => {
    await admin.post('/v1/keys', {});
    t.equal((await admin.post('/v1/keys', {})).status, 409);
  };
  t.equal(await growthOf(rejectedCreation, ...events('key.created')), 1, 'a rollback is not counted');
  const runs = hasher.runs;
  t.equal((await scrape(service)).value('latchkey_argon2_runs_total'), runs);
  t.ok(runs > 0);

  await verify(key.key);
  const hits = ['latchkey_record_cache_lookups_total', { cache: 'api_keys', result: 'hit' }] as const;
  t.equal(await growthOf(() => verify(key.key), ...hits), 1);
  const fresh = () =>
    verifier.post('/v1/verify', { key: key.key, permission: 'read' }, { 'cache-control': 'no-cache' });
  t.equal(await growthOf(fresh, hits[0], { cache: 'api_keys', result: 'miss' }), 1);

  const times = (status: string) =>
    ['latchkey_http_request_duration_seconds_count', { method: 'POST', route: '/v1/verify', status }] as const;
  t.equal(await growthOf(() => verify(key.key), ...times('2xx')), 1);
  t.equal(await growthOf(() => verify(key.key, { cost: -1 }), ...times('4xx')), 1);
  const noRoute = ['latchkey_http_request_duration_seconds_count', { route: 'none', status: '4xx' }] as const;
  t.equal(await growthOf(() => app.inject(`/nothing/${Math.random()}`), ...noRoute), 1);

  const { value, samples } = await scrape(service);
  t.equal(value('latchkey_listener_live'), 1);
  t.ok((value('latchkey_listener_age_seconds') ?? 99) < 2);
  t.same([value('latchkey_limits_mode', { mode: 'memory' }), value('latchkey_limits_mode', { mode: 'redis' })], [1, 0]);
  t.ok((value('latchkey_database_connections', { state: 'idle' }) ?? 0) > 0);
  t.equal(value('latchkey_build_info', { version: '0.0.0', node: process.version }), 1);
  const buckets = samples.filter(
    ({ name, labels }) =>
      name === 'latchkey_http_request_duration_seconds_bucket' &&
      labels['route'] === '/v1/verify' &&
      labels['status'] === '2xx',
  );
  const counts = buckets.map((bucket) => bucket.value);
  t.same(
    counts,
    counts.toSorted((one, other) => one - other),
    'buckets are cumulative',
  );
  t.equal(buckets.at(-1)?.labels['le'], '+Inf');
  t.equal(buckets.at(-1)?.value, value(...times('2xx')));
  const sum = value('latchkey_http_request_duration_seconds_sum', times('2xx')[1]) ?? 0;
  t.ok(sum > 0 && sum < 60, 'in seconds');
  t.ok(samples.length > before.samples.length);
});

t.test('the size of the metrics is bounded for a fresh service and after requests to every route', async (t) => {
  const service = await startService(t);
  const registry = new Registry();
  collectDefaultMetrics({ register: registry });
  const ofProcess = (await registry.metrics()).length;
  const bytes = async () => (await service.app.inject('/metrics')).body.length + ofProcess;
  t.ok((await bytes()) < 40_000, `${await bytes()} bytes`);
  for (const { method, url } of service.app.routeList) {
    for (const client of [service.admin, service.as('rubbish')]) {
      const headers = { authorization: `Bearer ${client.token}` };
      await service.app.inject({ method: [method].flat()[0] as 'GET', url, headers });
    }
  }
  t.ok((await bytes()) < 120_000, `${await bytes()} bytes`);
});

t.test('promtool reports no problem in metrics and alerts', { skip: unlessInstalled('promtool') }, async (t) => {
  const rules = run(t, 'promtool', ['check', 'rules', 'docs/prometheus-alerts.yml']);
  t.equal((await rules.exited).code, 0, rules.output());
  const service = await startService(t);
  await service.admin.post('/v1/keys', {});
  const lint = run(t, 'promtool', ['check', 'metrics']);
  lint.child.stdin?.end((await service.app.inject('/metrics')).body);
  await lint.exited;
  t.same(lint.output(), '');
});

t.test('with METRICS_PORT, metrics are served there, including process metrics, and nowhere else', async (t) => {
  const metricsPort = await freePort();
  const receiver = await startReceiver(t);
  const { url, tokens } = await serve(t, {
    METRICS_PORT: String(metricsPort),
    WEBHOOK_ALLOW_HTTP: 'true',
    WEBHOOK_ALLOW_CIDRS: '127.0.0.1',
  });
  const token = tokens['adminToken'] ?? '';
  t.equal((await fetch(`${url}/metrics`)).status, 404);
  const metricsUrl = `http://127.0.0.1:${metricsPort}`;
  t.match(await request(`${metricsUrl}/v1/keys`, { token }), { status: 404, body: { code: 'not_found' } });
  const { status } = await request(`${url}/v1/webhooks`, {
    method: 'POST',
    token,
    body: { url: receiver.url, events: ['key.created'] },
  });
  t.equal(status, 201);
  await request(`${url}/v1/keys`, { method: 'POST', token, body: {} });
  const metrics = await eventually(async () => {
    const read = readMetrics(await (await fetch(`${metricsUrl}/metrics`)).text());
    return read.value('latchkey_webhook_attempts_total', { outcome: 'delivered' }) === 1 && read;
  });
  t.ok((metrics.value('process_resident_memory_bytes') ?? 0) > 10_000_000);
  t.ok(metrics.kinds.has('nodejs_eventloop_lag_p99_seconds'));
  await eventually(async () => {
    const { value } = readMetrics(await (await fetch(`${metricsUrl}/metrics`)).text());
    return value('latchkey_webhook_deliveries_pending') === 0 && value('latchkey_webhook_oldest_due_seconds') === 0;
  });
});
