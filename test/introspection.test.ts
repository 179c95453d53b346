import type { Test } from 'tap';
import { type Json, startService } from './support/app.ts';
import { t } from './support/tap.ts';

// Introspection by RFC 7662, as OAuth clients send it.

async function startIntrospecting(t: Test, overrides: Parameters<typeof startService>[1] = {}) {
  const service = await startService(t, overrides);
  const url = await service.app.listen({ port: 0, host: '127.0.0.1' });
  const { body: key } = await service.admin.post('/v1/keys', {});
  const introspect = async (headers: Record<string, string>, form: Record<string, string> | [string, string][]) => {
    const body = new URLSearchParams(form);
    const response = await fetch(`${url}/v1/introspect`, { method: 'POST', headers, body });
    const { status } = response;
    return { status, challenge: response.headers.get('www-authenticate'), body: (await response.json()) as Json };
  };
  return { ...service, url, key, introspect };
}

const basic = (id: string, secret: string) => ({
  authorization: `Basic ${Buffer.from(`${id}:${secret}`).toString('base64')}`,
});

const encode = (text: string) =>
  [...text].map((character) => `%${character.charCodeAt(0).toString(16).padStart(2, '0')}`).join('');

t.test('a verifier can authenticate by Bearer, by HTTP Basic or in the form', async (t) => {
  const { introspect, key, verifier } = await startIntrospecting(t);
  const token = key.key;
  const { token: secret } = verifier;
  const methods: Record<string, [headers: Record<string, string>, form: Record<string, string>]> = {
    Bearer: [{ authorization: `Bearer ${secret}` }, {}],
    'X-API-Key': [{ 'x-api-key': secret }, {}],
    'Bearer, with an id in the form': [{ authorization: `Bearer ${secret}` }, { client_id: 'rs' }],
    Basic: [basic('rs', secret), {}],
    'Basic in other letter case': [{ authorization: basic('rs', secret).authorization.replace('Basic', 'bASIC') }, {}],
    'Basic without an id': [basic('', secret), {}],
    'Basic, percent-encoded': [basic(encode('https://rs.example'), encode(secret)), {}],
    'Basic, the underscores encoded': [basic('rs', secret.replaceAll('_', '%5F')), {}],
    'the form': [{}, { client_id: 'rs', client_secret: secret }],
    'the form without an id': [{}, { client_secret: secret }],
    'the same secret twice': [basic('rs', secret), { client_id: 'rs', client_secret: secret }],
  };
  for (const [what, [headers, form]] of Object.entries(methods)) {
    t.match(await introspect(headers, { token, ...form }), { status: 200, body: { active: true, sub: key.id } }, what);
  }
});

t.test('an invalid verifier token is rejected with the challenge of its scheme', async (t) => {
  const { introspect, key, admin, verifier } = await startIntrospecting(t);
  const token = key.key;
  for (const [secret, status, code] of [
    ['nonsense', 401, 'token_malformed'],
    [key.key, 403, 'forbidden'],
    [admin.token, 403, 'forbidden'],
  ] as const) {
    const inBasic = await introspect(basic('rs', secret), { token });
    t.match(inBasic, { status, body: { code } }, `Basic: ${code}`);
    if (status === 401) t.equal(inBasic.challenge, 'Basic realm="latchkey"');
    t.match(await introspect({}, { token, client_id: 'rs', client_secret: secret }), { status, body: { code } }, code);
  }
  for (const [what, headers, form] of [
    ['nothing', {}, {}],
    ['an id alone', {}, { client_id: 'rs' }],
    ['Basic without a secret', basic('rs', ''), {}],
    ['Basic that is not base64', { authorization: 'Basic :::' }, {}],
    ['another scheme', { authorization: 'Digest x' }, {}],
  ] as Array<[string, Record<string, string>, Record<string, string>]>) {
    t.match(await introspect(headers, { token, ...form }), { status: 401, challenge: /^(Basic|Bearer) realm=/ }, what);
  }
  const twice = await introspect(basic('rs', verifier.token), { token, client_secret: 'another' });
  t.match(twice, { status: 400, body: { code: 'bad_request' } }, 'two different secrets');
});

t.test('other routes accept the secret only as Bearer', async (t) => {
  const { url, key, verifier } = await startIntrospecting(t);
  const headers = { ...basic('rs', verifier.token), 'content-type': 'application/json' };
  const body = JSON.stringify({ key: key.key, permission: 'read' });
  t.equal((await fetch(`${url}/v1/verify`, { method: 'POST', headers, body })).status, 401);
});

t.test('attempts with bad secrets count for their address, by every method', async (t) => {
  const limits = { callerLimit: 1e6, addressLimit: 4, revealLimit: 1e6 };
  const { introspect, key } = await startIntrospecting(t, { limits });
  const statuses: number[] = [];
  for (let round = 0; round < 3; round++) {
    statuses.push((await introspect(basic('rs', 'nonsense'), { token: key.key })).status);
    statuses.push((await introspect({}, { client_secret: 'nonsense', token: key.key })).status);
  }
  t.same(statuses, [401, 401, 401, 401, 429, 429]);
});

t.test('unknown fields are ignored, even if repeated', async (t) => {
  const { introspect, key, verifier } = await startIntrospecting(t);
  const by = { authorization: `Bearer ${verifier.token}` };
  const fields: [string, string][] = [
    ['token', key.key],
    ['token_type_hint', 'nonsense'],
    ['token_type_hint', 'access_token'],
    ['resource', 'https://api.example'],
    ['__proto__', 'x'],
    ['toString', 'x'],
  ];
  t.match(await introspect(by, fields), { status: 200, body: { active: true } });
  const twice = await introspect(by, [...fields, ['token', key.key]]);
  t.match(twice, { status: 400, body: { errors: [{ path: 'body.token', message: 'must be a string' }] } });
  t.match(await introspect(by, { more: 'x' }), { status: 400, body: { errors: [{ path: 'body.token' }] } });
  t.match(await introspect(by, {}), {
    status: 400,
    body: { errors: [{ path: 'body', message: /^is required: a form/ }] },
  });
});

t.test('limits are not checked, and a key with allowedIps is never active', async (t) => {
  const { introspect, admin, verifier } = await startIntrospecting(t);
  const by = { authorization: `Bearer ${verifier.token}` };
  const { body: busy } = await admin.post('/v1/keys', { rateLimit: { requests: 2, windowSeconds: 60 } });
  const use = async () => (await verifier.post('/v1/verify', { key: busy.key, permission: 'read' })).body.code;
  t.same([await use(), await use(), await use()], ['valid', 'valid', 'rate_limited']);
  await admin.patch(`/v1/keys/${busy.id}`, { rateLimit: { requests: 1, windowSeconds: 60 } });
  t.match(await introspect(by, { token: busy.key }), { body: { active: true, scope: 'read write' } });
  await admin.patch(`/v1/keys/${busy.id}`, { allowedIps: ['127.0.0.1'] });
  t.same((await introspect(by, { token: busy.key })).body, { active: false });
});
