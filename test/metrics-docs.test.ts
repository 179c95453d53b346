import { readFileSync } from 'node:fs';
import { collectDefaultMetrics, Registry } from 'prom-client';
import type { Test } from 'tap';
import { startService, type TestService } from './support/app.ts';
import { type ReadMetrics, readMetrics } from './support/metrics.ts';
import { t } from './support/tap.ts';

interface Documented {
  type: string;
  labels: string[];
  help: string;
}

function readTable(): Map<string, Documented> {
  const rows = readFileSync('docs/metrics.md', 'utf8').matchAll(/^\| `(\w+)` \| (\w+) \| ([^|]*) \| (.*) \|$/gm);
  return new Map(
    [...rows].map(([, name = '', type = '', labels = '', help = '']) => [
      name,
      { type, help, labels: labels.split(/[` ]+/).filter((label) => label !== '') },
    ]),
  );
}

const documented = readTable();
const withoutSuffix = (name: string) => (documented.has(name) ? name : name.replace(/_(bucket|sum|count)$/, ''));
const scrape = async ({ app }: TestService) => readMetrics((await app.inject('/metrics')).body);

/** Each caller sends each request once, many of them invalid. */
async function traffic({ app, admin, verifier, operator, as }: TestService, seed: string): Promise<void> {
  const { body: partner } = await admin.post('/v1/partners', { email: `${seed}@p.example`, permissions: ['read'] });
  const [key] = partner.keys;
  for (const client of [admin, verifier, operator, as(key.key), as(`rubbish-${seed}`)]) {
    await client.get(`/v1/keys/${key.id}`);
    await client.get(`/v1/${seed}`);
    await client.get('/v1/self');
    await client.post('/v1/verify', { key: key.key, permission: 'read', ip: '203.0.113.7' });
  }
  for (const path of [`/${seed}`, `/v1/authorize/${seed}`, '/livez', `/problems/${seed}`, `/%zz${seed}`]) {
    for (const method of ['GET', 'PUT', 'PROPFIND'] as const) {
      await app.inject({ method: method as 'GET', url: path, headers: { 'x-request-id': seed, 'user-agent': seed } });
    }
  }
  await admin.delete(`/v1/partners/${partner.id}`);
}

t.test('docs/metrics.md lists every metric with its type, its labels and its text', async (t) => {
  const service = await startService(t);
  await traffic(service, 'once');
  const { kinds, samples } = await scrape(service);
  t.same([...documented.keys()], [...kinds.keys()], 'in the same order');
  for (const [name, { type, help }] of kinds) t.match(documented.get(name), { type, help }, name);
  for (const { name, labels } of samples) {
    const { labels: documentedLabels = [], type } = documented.get(withoutSuffix(name)) ?? {};
    const bucket = type === 'histogram' && name.endsWith('_bucket') ? ['le'] : [];
    t.same(Object.keys(labels).sort(), [...documentedLabels, ...bucket].sort(), name);
  }
});

t.test('labels contain no input of callers, and more callers add no series', async (t) => {
  const service = await startService(t);
  const seriesOf = ({ samples }: ReadMetrics) =>
    samples.map(({ name, labels }) => `${name} ${JSON.stringify(labels)}`).sort();
  await scrape(service);
  await traffic(service, 'first-caller');
  const before = seriesOf(await scrape(service));
  await traffic(service, 'second-caller');
  await traffic(service, 'third-caller');
  const after = seriesOf(await scrape(service));
  t.same(after, before);
  t.notMatch(after.join('\n'), /(org|key|partner|token|event|recovery|webhook|delivery)_[0-9a-z]{26}|caller|203\.0/);
});

/** Names and labels in a PromQL expression, with the metric of each label. */
function metricsIn(expression: string): Array<{ name: string; labels: string[] }> {
  return [...expression.matchAll(/\b((?:latchkey|process|nodejs)_\w+)(?:\{([^}]*)\})?/g)].map(
    ([, name = '', selector = '']) => ({
      name,
      labels: [...selector.matchAll(/(\w+)\s*(?:=~|!~|!=|=)/g)].map(([, label = '']) => label),
    }),
  );
}

const ofPrometheus = ['job', 'instance', 'le'];

async function requireExistingMetrics(t: Test, expressions: readonly string[]): Promise<void> {
  const registry = new Registry();
  collectDefaultMetrics({ register: registry });
  const ofProcess = readMetrics(await registry.metrics()).kinds;
  for (const expression of expressions) {
    const metrics = metricsIn(expression);
    t.not(metrics.length, 0, expression);
    const labelsThere = new Set(ofPrometheus);
    for (const { name, labels } of metrics) {
      const known = documented.get(withoutSuffix(name));
      t.ok(known !== undefined || ofProcess.has(name), `${name} exists`);
      const isPart = known?.type === 'histogram';
      t.equal(withoutSuffix(name) !== name, isPart, `${name}: only a histogram is queried by its parts`);
      for (const label of known?.labels ?? []) labelsThere.add(label);
      for (const label of labels) {
        t.ok(ofPrometheus.includes(label) || known?.labels.includes(label), `${name} has ${label}`);
      }
    }
    for (const [, list = ''] of expression.matchAll(/\b(?:by|on) ?\(([^)]*)\)/g)) {
      for (const label of list.split(',').map((name) => name.trim())) {
        t.ok(label === '' || labelsThere.has(label), `${label} in ${expression}`);
      }
    }
  }
}

t.test('the dashboard queries only existing metrics', async (t) => {
  const dashboard = JSON.parse(readFileSync('docs/grafana-dashboard.json', 'utf8')) as {
    panels: Array<{ id: number; title: string; targets: Array<{ expr: string; legendFormat: string }> }>;
  };
  const { panels } = dashboard;
  t.equal(new Set(panels.map(({ id }) => id)).size, panels.length);
  const targets = panels.flatMap((panel) => panel.targets);
  await requireExistingMetrics(
    t,
    targets.map(({ expr }) => expr),
  );
  const shown = targets.flatMap(({ expr }) => metricsIn(expr).map(({ name }) => withoutSuffix(name)));
  const missing = [...documented.keys()].filter((name) => !shown.includes(name));
  t.same(missing, [
    'latchkey_record_cache_entries',
    'latchkey_job_last_failure_timestamp_seconds',
    'latchkey_job_last_duration_seconds',
    'latchkey_job_last_done',
    'latchkey_job_overdue',
    'latchkey_keys_suspended_idle',
  ]);
});

t.test('the alerts query only existing metrics', async (t) => {
  const rules = readFileSync('docs/prometheus-alerts.yml', 'utf8');
  const expressions = [...rules.matchAll(/^ {8}expr: (.+)$/gm)].map(([, expression = '']) => expression);
  t.equal(expressions.length, [...rules.matchAll(/- alert: /g)].length);
  await requireExistingMetrics(t, expressions);
});
