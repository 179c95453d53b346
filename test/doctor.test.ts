import t from 'tap';
import { startService } from './support/app.ts';
import { dbQuery } from './support/database.ts';
import { keyringOf, keyringText } from './support/keyrings.ts';
import { runEntry } from './support/process.ts';

t.test('doctor tells how each job stands, and what rests on each keyring entry', async (t) => {
  const { urls, admin } = await startService(t, { keyring: keyringOf('new', 'old') });
  await admin.post('/v1/keys', {});
  const doctor = async () => {
    const env = { DATABASE_URL: urls.app, LATCHKEY_KEYRING: keyringText('new', 'old') };
    const process = runEntry(t, 'cli/latchkey.ts', ['doctor'], { env });
    const { code } = await process.exited;
    return { code, output: process.output() };
  };
  const untouched = await doctor();
  t.match(untouched.output, /^ok {6}Job fold_usage has not run yet: no service has been started\.$/m);
  t.match(
    untouched.output,
    /^note {4}Keyring entry new \(primary\): 1 sealed key, the tags of 1 key and 3 access tokens\.$/m,
  );
  t.match(untouched.output, /^note {4}Keyring entry old \(secondary\): nothing rests on it, it can go\.$/m);

  await dbQuery(
    urls.app,
    "insert into job_runs (name, last_succeeded_at) values ('fold_usage', '2026-01-02T03:04:05Z')",
  );
  t.match(await doctor(), {
    code: 1,
    output: /^wrong {3}Job fold_usage is overdue; it last succeeded 2026-01-02T03:04:05\.000Z\. /m,
  });
  await dbQuery(urls.app, 'update job_runs set last_succeeded_at = now(), last_count = 12, last_duration_ms = 34');
  t.match(await doctor(), { output: /^ok {6}Job fold_usage last ran 20.*Z: 12 done in 34 ms\.$/m });
  await dbQuery(urls.app, "update job_runs set last_failed_at = now(), last_error = 'Error: no'");
  t.match(await doctor(), {
    code: 1,
    output: /^wrong {3}Job fold_usage failed 20.*Z \(Error: no\); it last succeeded 20/m,
  });
});
