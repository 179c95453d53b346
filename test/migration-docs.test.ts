import { writeFile } from 'node:fs/promises';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import path from 'node:path';
import type { Test } from 'tap';
import type { Json } from './support/app.ts';
import { createDatabase, dbQuery } from './support/database.ts';
import { startListening } from './support/hook.ts';
import { foreignToken, sha256Of } from './support/imports.ts';
import { keyringOf, keyringText } from './support/keyrings.ts';
import { openShell, pasteSteps, startFolder, stepsOf } from './support/pages.ts';
import { compiled } from './support/process.ts';
import { unlessInstalled } from './support/programs.ts';
import { snippetsOf } from './support/snippets.ts';
import { t } from './support/tap.ts';

// The commands of docs/migration.md, against the tables and replies of the systems that it exports from.

const page = 'docs/migration.md';
const skip = unlessInstalled('curl') || unlessInstalled('jq') || unlessInstalled('psql');

/** A shell in which the commands before the first export have run. @param env further variables */
async function startShell(t: Test, env: NodeJS.ProcessEnv = {}) {
  const service = await startListening(t, { keyring: keyringOf('one') });
  const folder = await startFolder(t, service);
  const [command, entry] = [path.join(folder, 'latchkey'), compiled('src/cli/latchkey.ts')];
  await writeFile(command, `#!/bin/sh\nexec ${process.execPath} ${entry} "$@"\n`, { mode: 0o755 });
  const shell = openShell(t, folder, {
    env: {
      PATH: `${folder}:${process.env['PATH']}`,
      DATABASE_URL: service.urls.app,
      LATCHKEY_KEYRING: keyringText('one'),
      ...env,
    },
  });
  const pasteAll = async (section: string) => {
    let output = '';
    for (const command of await snippetsOf(page, section, 'sh')) output += await shell.paste(command);
    return output;
  };
  await pasteAll('Before you start');
  const verdictOf = async (key: string): Promise<Json> =>
    (await service.verifier.post('/v1/verify', { key, permission: 'read' })).body;
  return { service, shell, folder, pasteAll, verdictOf };
}

/** A database of another system, with these tables and rows. */
async function oldDatabase(t: Test, ...statements: string[]): Promise<string> {
  const { superuser } = await createDatabase(t, { migrated: false });
  for (const statement of statements) await dbQuery(superuser, statement);
  return superuser;
}

const importNdjson = 'latchkey import keys.ndjson --organization $ORGANIZATION';

t.test('a home-grown table is moved by the commands of the page, from its export to the undo', { skip }, async (t) => {
  const [first, second, third, revoked] = [foreignToken(), foreignToken(), foreignToken(), foreignToken()];
  const url = await oldDatabase(
    t,
    'create table customers (id text primary key, email text not null, name text)',
    `create table home_grown (customer_id text references customers, key_hash text not null, last_four text, name text,
       scopes text[], expires_at timestamptz, revoked_at timestamptz, last_used_at timestamptz)`,
    "insert into customers values ('customer-1', 'ada@one.example', 'One, Inc'), ('customer-2', 'bob@two.example', null)",
    `insert into home_grown values
       ('customer-1', '${sha256Of(first)}', '${first.slice(-4)}', 'Billing, "new"', '{a:read,b}', '2099-01-01T12:00:00+02', null, now()),
       ('customer-1', '${sha256Of(second)}', null, null, null, null, null, null),
       ('customer-2', '${sha256Of(third)}', null, null, null, null, null, null),
       ('customer-1', '${sha256Of(revoked)}', null, null, null, null, now(), now()),
       ('customer-2', '${sha256Of(foreignToken())}', null, null, null, now() - interval '1 day', null, now())`,
  );
  const { service, shell, pasteAll, verdictOf } = await startShell(t, { OLD_DATABASE_URL: url, KNOWN_KEY: first });
  t.equal((await pasteAll('From a home-grown table')).trim(), '');
  t.equal((await pasteAll('Create the partners')).trim(), '', 'nothing went wrong');
  t.match(await pasteAll('Create the partners'), /^partner_exists: .*\npartner_exists: .*\n$/);
  const [dryRun = '', forGood = ''] = await snippetsOf(page, 'Import', 'sh');
  t.equal(await shell.paste(dryRun), '3 keys would be imported. Nothing was stored.\n');
  t.equal(await shell.paste(forGood), '3 keys were imported.\n');
  t.equal(await shell.paste(forGood), '0 keys were imported.\n3 keys are already there and were skipped.\n');
  await pasteSteps(t, await stepsOf(page, ['Run both side by side']), shell);
  t.match(await verdictOf(first), {
    code: 'valid',
    partnerExternalId: 'customer-1',
    scopes: ['a:read', 'b'],
    expiresAt: '2099-01-01T10:00:00.000Z',
  });
  t.match(await verdictOf(third), { code: 'valid', partnerExternalId: 'customer-2' });
  t.match(await verdictOf(revoked), { code: 'not_found' });

  const used = await pasteAll('See which keys are still in use');
  t.equal(used.trim().split('\n').length, 3);
  t.match(used, /^key_\w+\tBilling, "new"\t/m);
  const { keyId } = await verdictOf(third);
  await shell.paste(`export KEY_ID=${keyId}`);
  await pasteSteps(t, await stepsOf(page, ['Replace the old tokens']), shell);
  t.match(await verdictOf(third), { code: 'valid' }, 'the old token works until it expires');
  await service.admin.delete(`/v1/keys/${(await verdictOf(second)).keyId}`);
  await shell.paste(`export KEY_ID=${(await verdictOf(first)).keyId}`);
  await pasteSteps(t, await stepsOf(page, ['Hand the new key over']), shell);
  t.match(await verdictOf(first), { code: 'valid' });
  t.equal((await service.admin.get('/v1/history?action=claim.created')).body.data.length, 1);
  t.match(await pasteAll('Undo'), /^2 deleted$/m);
  t.match(await verdictOf(first), { code: 'deleted' });
  const { body } = await service.admin.get('/v1/history?action=key.imported');
  t.equal(body.data.length, 3);
});

t.test('keys of better-auth are moved by the commands of the page', { skip }, async (t) => {
  const [full, plain, disabled] = [foreignToken(), foreignToken(), foreignToken()];
  const hashed = (token: string) => Buffer.from(sha256Of(token), 'hex').toString('base64url');
  const url = await oldDatabase(
    t,
    'create table "user" (id text primary key, name text not null, email text not null)',
    `create table apikey (id text primary key, "configId" text not null default 'default', name text, start text, prefix text,
       "referenceId" text not null, key text not null, enabled boolean default true, "rateLimitEnabled" boolean default true,
       "rateLimitTimeWindow" integer default 86400000, "rateLimitMax" integer default 10, remaining integer,
       "expiresAt" timestamptz, permissions text, metadata text)`,
    `insert into "user" values ('u1', 'Ada', 'ada@u.example'), ('u2', 'Bob', 'bob@u.example')`,
    `insert into apikey (id, name, "referenceId", key, enabled, "rateLimitEnabled", "expiresAt", permissions, metadata) values
       ('a', 'Full', 'u1', '${hashed(full)}', true, true, '2099-01-01T00:00:00Z', '{"files":["read","write"]}', '{"plan":"pro"}'),
       ('b', null, 'u2', '${hashed(plain)}', true, false, null, null, null),
       ('c', null, 'u2', '${hashed(disabled)}', false, false, null, null, 'null')`,
  );
  const { service, shell, pasteAll, verdictOf } = await startShell(t, { OLD_DATABASE_URL: url });
  t.equal((await pasteAll('From better-auth')).trim(), '');
  t.equal((await pasteAll('Create the partners')).trim(), '');
  t.equal(await shell.paste(importNdjson), '2 keys were imported.\n');
  const verdict = await verdictOf(full);
  t.match(verdict, {
    code: 'valid',
    partnerExternalId: 'u1',
    scopes: ['files:read', 'files:write'],
    metadata: { plan: 'pro' },
  });
  t.match((await service.admin.get(`/v1/keys/${verdict.keyId}`)).body, {
    name: 'Full',
    expiresAt: '2099-01-01T00:00:00.000Z',
    rateLimit: { requests: 10, windowSeconds: 86_400 },
  });
  t.match(await verdictOf(plain), { code: 'valid', partnerExternalId: 'u2' });
  t.match(await verdictOf(disabled), { code: 'not_found' });
});

t.test("keys of Kong's key-auth are moved by the commands of the page", { skip }, async (t) => {
  const [lasting, ending, short] = [foreignToken(), foreignToken(), 'short'];
  const id = (last: string) => `00000000-0000-4000-8000-00000000000${last}`;
  const consumer = (last: string, custom_id: string | null) => ({
    id: id(last),
    username: `user-${last}`,
    custom_id,
    tags: null,
    created_at: 1_790_000_000,
    updated_at: 1_790_000_000,
  });
  const credential = (last: string, key: string, ttl: number | null) => ({
    id: id(last),
    consumer: { id: id(last) },
    key,
    ttl,
    tags: null,
    created_at: 1_790_000_000,
  });
  const replies: Record<string, object> = {
    '/consumers?size=1000': { data: [consumer('1', 'customer-1')], next: '/consumers?offset=x', offset: 'x' },
    '/consumers?offset=x': { data: [consumer('2', null)], next: null },
    '/key-auths?size=1000': {
      data: [credential('1', lasting, null), credential('2', ending, 3600)],
      next: '/key-auths?offset=y',
      offset: 'y',
    },
    '/key-auths?offset=y': { data: [credential('1', short, null)], next: null },
  };
  const kong = createServer((request, response) => {
    const body = replies[request.url ?? ''];
    response.writeHead(body === undefined ? 404 : 200, { 'content-type': 'application/json' });
    response.end(JSON.stringify(body ?? {}));
  });
  await new Promise<void>((resolve) => kong.listen(0, '127.0.0.1', resolve));
  t.teardown(() => kong.close());
  const url = `http://127.0.0.1:${(kong.address() as AddressInfo).port}`;
  const { shell, pasteAll, verdictOf } = await startShell(t, { KONG: url });
  t.equal((await pasteAll('From Kong')).trim(), '');
  t.equal((await pasteAll('Create the partners')).trim(), '');
  const output = await shell.paste(`${importNdjson} || true`);
  t.equal(
    output,
    'wrong   Line 3: plaintext: must have at least 16 characters.\n2 keys were imported.\nwrong   1 line does not fit.\n',
  );
  t.match(await verdictOf(lasting), { code: 'valid', partnerExternalId: 'customer-1', expiresAt: null });
  const verdict = await verdictOf(ending);
  t.match(verdict, { code: 'valid', partnerExternalId: 'user-2' });
  const leftMs = Date.parse(verdict.expiresAt) - Date.now();
  t.ok(leftMs > 3_000_000 && leftMs <= 3_600_000, 'the remaining time becomes the expiry');
});

t.test("lines that Unkey's MySQL prints for the query of the page are imported", { skip }, async (t) => {
  const [first, second] = [foreignToken(), foreignToken()];
  const hashed = (token: string) => Buffer.from(sha256Of(token), 'hex').toString('base64');
  const { service, shell, folder, pasteAll, verdictOf } = await startShell(t);
  await writeFile(
    path.join(folder, 'keys.ndjson'),
    `{"name": "Zoë \\"the\\" first", "scopes": ["documents.read", "documents.write"], "sha256": "${hashed(first)}", "metadata": {"plan": "pro", "seats": 3}, "expiresAt": "2099-01-01T00:00:00Z", "rateLimit": {"requests": 10, "windowSeconds": 60}, "partnerExternalId": "user_1"}
{"sha256": "${hashed(second)}", "partnerExternalId": "user_2"}
`,
  );
  await writeFile(
    path.join(folder, 'partners.ndjson'),
    ['user_1', 'user_2']
      .map(
        (id) =>
          `{"name": "${id}", "email": "${id}@customers.example", "createKeys": false, "externalId": "${id}", "permissions": ["read"]}\n`,
      )
      .join(''),
  );
  t.equal((await pasteAll('Create the partners')).trim(), '');
  t.equal(await shell.paste(importNdjson), '2 keys were imported.\n');
  const { keyId } = await verdictOf(first);
  t.match((await service.admin.get(`/v1/keys/${keyId}`)).body, {
    name: 'Zoë "the" first',
    scopes: ['documents.read', 'documents.write'],
    metadata: { plan: 'pro', seats: 3 },
    rateLimit: { requests: 10, windowSeconds: 60 },
    maskedKey: '…',
  });
  t.match(await verdictOf(second), { code: 'valid', partnerExternalId: 'user_2' });
});
