import { newId } from '../src/domain/ids.ts';
import { startService } from './support/app.ts';
import { dbQuery } from './support/database.ts';
import { startIssuer } from './support/issuer.ts';
import { keyringOf, keyringText } from './support/keyrings.ts';
import { runEntry } from './support/process.ts';
import { t } from './support/tap.ts';

t.test('doctor prints the state of each job and the use of each keyring entry', async (t) => {
  const { urls, admin } = await startService(t, { keyring: keyringOf('new', 'old') });
  await admin.post('/v1/keys', {});
  const doctor = async () => {
    const env = { DATABASE_URL: urls.app, LATCHKEY_KEYRING: keyringText('new', 'old') };
    const process = runEntry(t, 'cli/latchkey.ts', ['doctor'], { env });
    const { code } = await process.exited;
    return { code, output: process.output() };
  };
  const untouched = await doctor();
  t.match(untouched.output, /^ok {6}Job fold_usage has not run yet: no service was started\.$/m);
  t.match(
    untouched.output,
    /^note {4}Keyring entry new \(primary\): 1 sealed key, the tags of 1 key and 3 access tokens, the MACs of 4 credentials\.$/m,
  );
  t.match(untouched.output, /^note {4}Keyring entry old \(secondary\): not used; it can be removed\.$/m);

  t.match(untouched.output, /^ok {6}The row of every credential was written with the keyring\.$/m);
  await dbQuery(urls.app, "update access_tokens set role = 'verifier' where role = 'operator'");
  const tampered = await doctor();
  t.equal(tampered.code, 1);
  t.match(tampered.output, /^wrong {3}1 credential was changed or written without the keyring, .*: token_/m);
  await dbQuery(urls.app, "update access_tokens set role = 'operator' where name = 'First operator'");

  await dbQuery(urls.app, "update access_tokens set mac_keyring_id = 'gone' where role = 'operator'");
  const missingEntry = await doctor();
  t.equal(missingEntry.code, 1);
  t.match(missingEntry.output, /^wrong {3}1 credential cannot be authenticated, .* rejected: token_\w+\. The note/m);
  t.match(missingEntry.output, /^note {4}Keyring entry gone \(not in the keyring\): .* Restore the entry, or /m);
  t.notMatch(missingEntry.output, /Replace them/, 'one remedy');
  await dbQuery(urls.app, "update access_tokens set mac_keyring_id = 'new' where role = 'operator'");

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

t.test('doctor fetches the keys of the identity provider and checks that its organizations exist', async (t) => {
  const issuer = await startIssuer(t);
  const { urls, organizationId } = await startService(t, { keyring: keyringOf('new') });
  const doctor = async (env: NodeJS.ProcessEnv) => {
    const process = runEntry(t, 'cli/latchkey.ts', ['doctor'], {
      env: {
        DATABASE_URL: urls.app,
        LATCHKEY_KEYRING: keyringText('new'),
        OIDC_ISSUER: issuer.url,
        OIDC_AUDIENCE: 'https://latchkey.example',
        ...env,
      },
    });
    const { code } = await process.exited;
    return { code, output: process.output() };
  };
  const good = await doctor({ OIDC_ORGANIZATION: organizationId });
  t.match(good, { code: 0, output: /^ok {6}The identity provider http:\S+ is reachable and publishes 1 key\.$/m });
  const missing = newId('org');
  const mapped = await doctor({
    OIDC_ORGANIZATION_CLAIM: 'org',
    OIDC_ORGANIZATIONS: `a=${organizationId},b=${missing}`,
  });
  t.match(mapped, {
    code: 1,
    output: new RegExp(`^wrong {3}Organization ${missing} of the OIDC settings does not exist`, 'm'),
  });
  t.notMatch(mapped.output, `Organization ${organizationId} of the OIDC settings does not exist`);
  await issuer.goDown();
  t.match(await doctor({ OIDC_ORGANIZATION: organizationId }), {
    code: 1,
    output:
      /^wrong {3}The keys of the identity provider http:\S+ cannot be fetched: .*ECONNREFUSED.* Is OIDC_ISSUER correct\?$/m,
  });
});
