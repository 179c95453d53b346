import type { Test } from 'tap';
import { type LatchkeyOptions, latchkey as middlewareOf } from '../clients/node/src/express.ts';
import { latchkey as guardOf } from '../clients/node/src/fetch.ts';
import { type Json, startService } from './support/app.ts';
import { dbQuery } from './support/database.ts';
import { startBackend, startClient, startListening } from './support/hook.ts';
import { listenBehind } from './support/middleware.ts';
import { eventually, run } from './support/process.ts';
import { unlessInstalled } from './support/programs.ts';
import { t } from './support/tap.ts';

const scopes = ['invoices:read', 'invoices:write'];

t.test('a key has the scopes that it was given, until they are changed as a whole', async (t) => {
  const { admin } = await startService(t);
  const { body: plain } = await admin.post('/v1/keys', {});
  t.same(plain.scopes, []);
  const { body: key } = await admin.post('/v1/keys', { scopes });
  t.same(key.scopes, scopes);
  const { body: patched } = await admin.patch(`/v1/keys/${key.id}`, { scopes: ['invoices:read'] });
  t.same(patched.scopes, ['invoices:read']);
  t.same((await admin.get(`/v1/keys/${key.id}`)).body.scopes, ['invoices:read']);
  const { body: list } = await admin.get('/v1/keys');
  t.same(list.data.find(({ id }: Json) => id === key.id).scopes, ['invoices:read'], 'in lists');
  const { body: rows } = await admin.get('/v1/rows');
  const inRows = rows.data.flatMap((row: Json) => row.keys).find(({ id }: Json) => id === key.id);
  t.same(inRows.scopes, ['invoices:read'], 'in rows');
  const { body: history } = await admin.get('/v1/history?limit=2');
  t.match(history.data, [
    { action: 'key.updated', details: { changes: { scopes: { from: scopes, to: ['invoices:read'] } } } },
    { action: 'key.created', details: { scopes } },
  ]);
  await admin.delete(`/v1/keys/${plain.id}`);
  const { body: rotated } = await admin.post(`/v1/keys/${key.id}/rotate`, {});
  t.same(rotated.scopes, ['invoices:read'], 'a rotation carries them over');
  const { body: created } = await admin.get('/v1/history?action=key.created&limit=1');
  t.match(created.data, [{ keyId: rotated.id, details: { scopes: ['invoices:read'], replacesKeyId: key.id } }]);
});

t.test('scopes are at most 50 different scope tokens of RFC 6749', async (t) => {
  const { admin } = await startService(t);
  const create = async (value: unknown) => (await admin.post('/v1/keys', { scopes: value })).status;
  const { body: key } = await admin.post('/v1/keys', {
    scopes: ['!', '~', "#'()[]^_`{|}", 'x'.repeat(100), ...Array.from({ length: 46 }, (_, index) => `s${index}`)],
  });
  t.equal(key.scopes.length, 50);
  for (const wrong of [
    ['with space'],
    ['"'],
    ['\\'],
    ['é'],
    [''],
    ['x'.repeat(101)],
    ['a', 'a'],
    [1],
    'a',
    null,
    Array.from({ length: 51 }, (_, index) => `s${index}`),
  ]) {
    t.equal(await create(wrong), 400, JSON.stringify(wrong).slice(0, 60));
  }
});

t.test('the database accepts at most 50 scopes, and no null among them', async (t) => {
  const { admin, urls } = await startService(t);
  const { body: key } = await admin.post('/v1/keys', { scopes });
  const setTo = (value: string) => dbQuery(urls.app, `update api_keys set scopes = ${value} where id = $1`, [key.id]);
  await setTo("array_fill('a'::text, array[50])");
  for (const wrong of ["array_fill('a'::text, array[51])", 'array[null]::text[]', 'null']) {
    await t.rejects(setTo(wrong), /api_keys_scopes_whole|not-null/, wrong);
  }
});

t.test('a verification that asks for scopes needs all of them on the key', async (t) => {
  const { admin, verifier, app } = await startService(t);
  const { body: key } = await admin.post('/v1/keys', { scopes });
  const verify = async (asked?: string[]) =>
    (await verifier.post('/v1/verify', { key: key.key, permission: 'read', ...(asked && { scopes: asked }) })).body;
  t.match(await verify(), { code: 'valid', scopes });
  t.match(await verify([]), { code: 'valid' });
  t.match(await verify(['invoices:write', 'invoices:read']), { valid: true, code: 'valid' });
  t.match(await verify(['invoices:read', 'refunds']), { valid: false, code: 'insufficient_scope', scopes });
  const { body: batch } = await verifier.post('/v1/verify/batch', {
    entries: [
      { key: key.key, permission: 'read', scopes: ['invoices:read'] },
      { key: key.key, permission: 'read', scopes: ['refunds'] },
      { key: key.key, permission: 'read', scopes: ['with space'] },
    ],
  });
  t.match(batch.data, [{ code: 'valid' }, { code: 'insufficient_scope' }, { code: 'validation_failed' }]);

  const authorize = (query: string) =>
    app.inject({
      url: `/v1/authorize${query}`,
      headers: { authorization: `Bearer ${key.key}`, 'x-latchkey-token': verifier.token, 'x-forwarded-method': 'GET' },
    });
  t.equal((await authorize('?scope=invoices:read&scope=invoices:write')).statusCode, 200);
  t.equal((await authorize('?scope=invoices:read')).statusCode, 200);
  t.equal((await authorize('?scope=refunds')).statusCode, 403);
  t.equal((await authorize('?scope=')).statusCode, 403, 'a scope that no key can have');
  t.equal((await authorize('/invoices?scope=refunds')).statusCode, 200, "Envoy's query is the client's");
  const rejected = await authorize('?scope=invoices:read&scope=refunds');
  t.match(rejected, { statusCode: 403, headers: { 'x-latchkey-code': 'insufficient_scope' } });

  const form = { 'content-type': 'application/x-www-form-urlencoded', authorization: `Bearer ${verifier.token}` };
  const introspect = { method: 'POST', url: '/v1/introspect', headers: form, payload: `token=${key.key}` } as const;
  t.match((await app.inject(introspect)).json(), { scope: 'read write invoices:read invoices:write' });

  await admin.patch(`/v1/keys/${key.id}`, { scopes: ['refunds'] });
  t.match(await verify(['refunds']), { code: 'valid' }, 'a change acts with the next verification');
  t.match(await verify(['invoices:read']), { code: 'insufficient_scope' });
});

/** What Latchkey rejects in a question, and so do the clients. */
const impossible = [
  'invoices:read',
  '',
  null,
  ['a b'],
  [''],
  [1],
  ['a', 'a'],
  ['x'.repeat(101)],
  Array.from({ length: 51 }, (_, index) => `s${index}`),
] as unknown as string[][];

t.test('the Node client answers questions about scopes from memory, and every server can ask them', async (t) => {
  const service = await startListening(t);
  const { body: key } = await service.admin.post('/v1/keys', { scopes });
  const access = { url: service.url, token: service.verifier.token };
  const client = await startClient(t, access);
  const verify = (asked: string[]) => client.verify({ key: key.key, permission: 'read', scopes: asked });
  t.equal((await verify(['invoices:read'])).code, 'valid');
  t.match(verify(['invoices:write']), { code: 'valid' }, 'at once: the cached key has its scopes');
  t.equal((await verify(['refunds'])).code, 'insufficient_scope');
  t.match(verify(scopes), { code: 'valid' }, 'the key stays cached');
  const { scopes: shared } = await verify(scopes);
  t.throws(() => (shared as string[]).push('refunds'), TypeError, 'an application cannot widen the cached key');
  t.equal((await verify(['refunds'])).code, 'insufficient_scope');

  const hook = await startBackend(t, access, (app) => {
    app.get('/invoices', { config: { scopes: ['invoices:read'] } }, async ({ apiKey }) => apiKey?.scopes);
    app.get('/refunds', { config: { scopes: ['refunds'] } }, async () => ({}));
  });
  t.equal(await hook.status(key.key, '/invoices'), 200);
  t.equal(await hook.status(key.key, '/refunds'), 403);
  const challenge = await fetch(`${hook.url}/refunds`, { headers: { 'x-api-key': key.key } });
  t.match(challenge.headers.get('www-authenticate'), /error="insufficient_scope".*scope="refunds"/);
  for (const wrong of impossible) {
    await t.rejects(
      startBackend(t, access, (app) => app.get('/x', { config: { scopes: wrong } }, async () => ({}))),
      /GET \/x: config\.scopes must be a list/,
      JSON.stringify(wrong).slice(0, 60),
    );
    t.throws(() => verify(wrong), RangeError);
  }
  await t.rejects(
    startBackend(t, access, (app) => app.get('/x', { config: { permission: 'none', scopes } }, async () => ({}))),
    /GET \/x: config\.scopes needs a key/,
  );

  const guard = guardOf(access);
  t.teardown(() => guard.close());
  const ask = (asked: string[]) =>
    guard.check(new Request('https://api.example/', { headers: { 'x-api-key': key.key } }), { scopes: asked });
  t.match(await ask(scopes), { apiKey: { scopes } });
  t.equal((await ask(['refunds'])).response?.status, 403);
  t.same(await throughMiddleware(t, access, key, ['invoices:read']), 200);
  t.same(await throughMiddleware(t, access, key, ['refunds']), 403);

  await service.admin.patch(`/v1/keys/${key.id}`, { scopes: ['refunds'] });
  await eventually(async () => (await verify(['refunds'])).code === 'valid');
  t.equal((await verify(['invoices:read'])).code, 'insufficient_scope');
  await eventually(async () => !(verify(['refunds']) instanceof Promise));
  await service.app.close();
  await eventually(async () => !client.isLive());
  t.equal((await verify(['refunds'])).code, 'valid', 'also while Latchkey is gone');
  t.equal((await verify(['invoices:read'])).code, 'insufficient_scope');
});

async function throughMiddleware(t: Test, access: LatchkeyOptions, key: Json, asked: string[]): Promise<number> {
  const middleware = middlewareOf(access);
  const route = middleware.needing({ scopes: asked });
  const url = await listenBehind(t, middleware, (request, response) => route(request, response, () => response.end()));
  return (await fetch(url, { headers: { 'x-api-key': key.key } })).status;
}

const script = `
import os, sys, time
sys.path.insert(0, "clients/python")
from latchkey_client import LatchkeyClient, LatchkeyWSGI
with LatchkeyClient(os.environ["LATCHKEY_URL"], os.environ["LATCHKEY_TOKEN"]) as client:
    key = os.environ["KEY"]
    while not client.is_live():
        client.verify(key, "read")
        time.sleep(0.05)
    client.verify(key, "read")
    sources = []
    client._on_event = lambda name, detail: name == "verified" and sources.append(detail["source"])
    codes = [client.verify(key, "read", scopes=scopes) for scopes in (["invoices:read"], ["refunds"], ["invoices:write"])]
    print(",".join(verdict.code for verdict in codes), ",".join(codes[0].scopes), ",".join(sources))
    codes[2].scopes.append("refunds")
    print(client.verify(key, "read", scopes=["refunds"]).code)
    app = lambda environ, start: (start("200 OK", []), [",".join(environ["latchkey.key"].scopes).encode()])[1]
    for needed in (["invoices:read"], ["invoices:read", "refunds"]):
        def start(status, headers):
            print(status, dict(headers).get("WWW-Authenticate", "").partition("scope=")[2])
        environ = {"REQUEST_METHOD": "GET", "PATH_INFO": "/", "HTTP_X_API_KEY": key, "REMOTE_ADDR": "192.0.2.1"}
        list(LatchkeyWSGI(app, client, scopes=lambda environ: needed)(environ, start))
`;

t.test('the Python client asks for scopes, too', { skip: unlessInstalled('python3') }, async (t) => {
  const service = await startListening(t);
  const { body: key } = await service.admin.post('/v1/keys', { scopes });
  const env = {
    LATCHKEY_URL: service.url,
    LATCHKEY_TOKEN: service.verifier.token,
    KEY: key.key,
    PYTHONDONTWRITEBYTECODE: '1',
  };
  const python = run(t, 'python3', ['-c', script], { env });
  t.equal((await python.exited).code, 0, python.output());
  t.same(python.stdout().trim().split('\n'), [
    'valid,insufficient_scope,valid invoices:read,invoices:write memory,latchkey,memory',
    'insufficient_scope',
    '200 OK ',
    '403 Forbidden "invoices:read refunds"',
  ]);
});
