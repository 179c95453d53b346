import crypto from 'node:crypto';
import { syncBuiltinESMExports } from 'node:module';
import { dbAddKeys } from '../bench/key-rows.ts';
import { listAccessTokens } from '../src/access-tokens/store.ts';
import { checkCredentialRows } from '../src/credentials/store.ts';
import type { OrganizationId } from '../src/domain/ids.ts';
import { createCheckpoints } from '../src/history/checkpoints/signing.ts';
import { accessTokenRows } from '../src/history/state-rows.ts';
import { lockLiveKeysOfRow } from '../src/keys/store.ts';
import { startService, type TestService } from './support/app.ts';
import { dbQuery } from './support/database.ts';
import { keyringOf } from './support/keyrings.ts';
import { plansOf, rowsRead } from './support/plans.ts';
import { t } from './support/tap.ts';

// What must not grow with an installation. The times are measured by `npm run bench:scale`.

/** Organizations with an access token each, and heads of empty chains. */
async function dbAddOrganizations({ urls }: TestService, count: number): Promise<void> {
  const ids = `select 'org_' || lpad(number::text, 26, '0') as org, 'token_' || lpad(number::text, 26, '0') as token
    from generate_series(1, ${count}) as number`;
  await dbQuery(
    urls.superuser,
    `with ids as (${ids})
     insert into organizations
     select (jsonb_populate_record(one, jsonb_build_object('id', ids.org))).* from ids, organizations as one`,
  );
  await dbQuery(
    urls.superuser,
    `with ids as (${ids})
     insert into access_tokens
     select (jsonb_populate_record(one, jsonb_build_object('id', ids.token, 'organization_id', ids.org))).*
     from ids, access_tokens as one where role = 'admin'`,
  );
  await dbQuery(
    urls.superuser,
    `insert into history_heads select org, 0, decode(repeat('00', 32), 'hex'), now() from (${ids}) as ids`,
  );
}

const quiet = { info: () => undefined, error: () => undefined };

t.test('the tokens of one organization, and those of the installation, are read without those of others', async (t) => {
  const service = await startService(t);
  await dbAddOrganizations(service, 1_000);
  await dbQuery(service.urls.superuser, 'analyze access_tokens');
  const { pool } = service.client;
  for (const organizationId of [service.organizationId as OrganizationId, null]) {
    const listed = await plansOf(pool, (db) => listAccessTokens(db, organizationId, { limit: 50, before: undefined }));
    const audited = await plansOf(pool, (db) => db.transaction().execute((tx) => accessTokenRows(tx, organizationId)));
    for (const plan of [...listed, ...audited]) t.ok(rowsRead(plan) < 10, `${organizationId}: ${rowsRead(plan)} rows`);
  }
});

t.test('a key of the default row is created without reading the keys of partners', async (t) => {
  const service = await startService(t);
  const { urls } = service;
  const organizationId = service.organizationId as OrganizationId;
  await dbAddKeys(urls.superuser, { organizationId, keyring: keyringOf('k1'), argon2idHash: 'none', partners: 1_000 });
  const [plan = []] = await plansOf(service.client.pool, (db) =>
    db
      .transaction()
      .execute((tx) => lockLiveKeysOfRow(tx, { organizationId, partnerId: null, permission: 'read_write' })),
  );
  t.ok(rowsRead(plan) < 10, `${rowsRead(plan)} rows`);
});

t.test('a round of checkpoints reads unchanged chains in large pages, and verifies no signature again', async (t) => {
  const service = await startService(t);
  await dbAddOrganizations(service, 1_200);
  const { db, pool } = service.client;
  const checkpoints = createCheckpoints({ db, keyring: keyringOf('evidence'), logger: quiet });
  t.equal((await checkpoints.signChanged()).length, 2, 'the chains with events');
  let verified = 0;
  const { verify } = crypto;
  t.teardown(() => {
    crypto.verify = verify;
    syncBuiltinESMExports();
  });
  crypto.verify = ((...given: Parameters<typeof verify>) => {
    verified += 1;
    return verify(...given);
  }) as typeof verify;
  syncBuiltinESMExports();
  let queries = 0;
  pool.on('acquire', () => {
    queries += 1;
  });
  t.same(await checkpoints.signChanged(), []);
  t.equal(verified, 0);
  t.ok(queries <= 4, `${queries} queries`);
});

t.test('doctor checks a sample of the keys if there are many, and every key on request', async (t) => {
  const service = await startService(t);
  const { urls } = service;
  const organizationId = service.organizationId as OrganizationId;
  const keyring = keyringOf('k1');
  await dbAddKeys(urls.superuser, { organizationId, keyring, argon2idHash: 'none', partners: 2_000 });
  const { db } = service.client;
  await dbQuery(urls.superuser, "update api_keys set mac = sha256('forged')");
  const sampled = await checkCredentialRows(db, keyring, { all: false, atMost: 500 });
  t.equal(sampled.sampledFrom, 4_000);
  const forgedKeys = (ids: string[]) => ids.filter((id) => id.startsWith('key_')).length;
  t.ok(forgedKeys(sampled.forged) > 0 && forgedKeys(sampled.forged) < 3_000, `${sampled.forged.length} found`);
  for (const options of [{ all: true, atMost: 500 }, { all: false }]) {
    const whole = await checkCredentialRows(db, keyring, options);
    t.equal(whole.sampledFrom, undefined);
    t.equal(forgedKeys(whole.forged), 4_000);
  }
});
