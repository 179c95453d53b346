import t from 'tap';
import { insertJobs, markFailed, markSucceeded } from '../src/jobs/store.ts';
import { startService } from './support/app.ts';
import { dbQuery } from './support/database.ts';

t.test('metrics: when each job last ran and how it ended, and what is overdue', async (t) => {
  const service = await startService(t);
  const { app, admin, client, urls } = service;
  const scrape = async () => {
    const response = await app.inject('/metrics');
    t.equal(response.statusCode, 200);
    t.match(response.headers['content-type'], /^text\/plain; version=0\.0\.4/);
    return response.body;
  };
  await insertJobs(client.db, ['purge_keys', 'fold_usage']);
  await markSucceeded(client.db, 'purge_keys', { count: 3, durationMs: 1_500 });
  await markFailed(client.db, 'fold_usage', 'Error: no');
  const { body: key } = await admin.post('/v1/keys', {});
  await admin.delete(`/v1/keys/${key.id}`);
  await admin.post('/v1/recovery-requests', { keyId: key.id, details: 'By mistake' });

  const nowSeconds = Date.now() / 1_000;
  const text = await scrape();
  const sample = (name: string) => {
    const line = text.split('\n').find((candidate) => candidate.startsWith(`${name} `));
    return line === undefined ? undefined : Number(line.slice(name.length + 1));
  };
  t.ok(Math.abs((sample('latchkey_job_last_success_timestamp_seconds{job="purge_keys"}') ?? 0) - nowSeconds) < 60);
  t.ok(Math.abs((sample('latchkey_job_last_failure_timestamp_seconds{job="fold_usage"}') ?? 0) - nowSeconds) < 60);
  t.equal(sample('latchkey_job_last_success_timestamp_seconds{job="fold_usage"}'), undefined);
  t.equal(sample('latchkey_job_last_duration_seconds{job="purge_keys"}'), 1.5);
  t.equal(sample('latchkey_job_last_count{job="purge_keys"}'), 3);
  t.equal(sample('latchkey_recovery_requests_overdue'), 0);
  service.later(25 * 3_600_000);
  t.match(await scrape(), /^latchkey_recovery_requests_overdue 1$/m);
  t.notMatch(await scrape(), /(org|key|partner|token|recovery)_[0-9a-z]{26}/, 'no ids');

  await t.test('a database that does not answer costs the values, not the scrape', async (t) => {
    await dbQuery(urls.superuser, 'alter table job_runs rename to job_runs_away');
    t.match(await scrape(), /^latchkey_recovery_requests_overdue 1$/m);
    t.match(service.logLines.join(''), 'Metrics could not be read');
    await dbQuery(urls.superuser, 'alter table job_runs_away rename to job_runs');
  });
});
