import { request as httpRequest } from 'node:http';
import type { AddressInfo } from 'node:net';
import { createSecretText } from '../src/crypto/secret-text.ts';
import { mintToken, type TokenKind } from '../src/crypto/token.ts';
import { idSuffix, newId } from '../src/domain/ids.ts';
import { type Json, startService } from './support/app.ts';
import { dbDump } from './support/database.ts';
import { eventually } from './support/process.ts';
import { t } from './support/tap.ts';
import { makeWebhook, startReceiver, startSending } from './support/webhooks.ts';

const aToken = (kind: TokenKind = 'k', prefix = 'lk') =>
  mintToken({ prefix, kind, idSuffix: idSuffix(newId('key')) }).reveal();

/** Percent-encodes every character the given number of times. */
const encoded = (text: string, times = 1): string =>
  times === 0
    ? text
    : encoded([...text].map((character) => `%${character.charCodeAt(0).toString(16)}`).join(''), 0).replaceAll(
        '%',
        `%${'25'.repeat(times - 1)}`,
      );

const spellingsOf = (token: string): Record<string, string> => ({
  alone: token,
  'with text around it': `see ${token}, please`,
  'with letters around it': `x${token}yz`,
  'behind half a token': `${token.slice(0, 40)}${token}`,
  'behind its own prefix': `lk_k_${token}`,
  'with one character encoded': token.replace('_', '%5F'),
  'encoded in full': encoded(token),
  'encoded twice': encoded(token, 2),
  'encoded four times': encoded(token, 4),
  'encoded in part, twice': token.replaceAll('_', '%255%46'),
  'in a URL': `https://example.com/?next=%2Fx%3Fkey%3D${token}%26y`,
});

t.test('a complete token is found in any text, and nothing else', async (t) => {
  const secrets = createSecretText('lk');
  const token = aToken();
  for (const [name, text] of Object.entries(spellingsOf(token))) {
    t.ok(secrets.isIn(text), name);
    t.ok(secrets.mayBeIn(JSON.stringify({ text })), `${name}: by the quick check`);
    t.match(secrets.redact(text), '[redacted]', name);
    t.notOk(secrets.isIn(secrets.redact(text)), `${name}: fully redacted`);
    t.notMatch(secrets.mask(text), token.slice(-20), name);
    t.notOk(secrets.isIn(secrets.mask(text)), name);
  }
  for (const kind of ['k', 'a', 'v', 'o'] as const) t.ok(secrets.isIn(aToken(kind)), kind);
  const notTokens = {
    'a mistyped token': `${token.slice(0, -1)}${token.endsWith('0') ? '1' : '0'}`,
    'a shortened token': token.slice(0, -1),
    "another installation's": aToken('k', 'acme'),
    'a masked token': 'lk_k_…Zq9B',
    'bad percent-encoding': '%zz 100% %c3%28 %',
  };
  for (const [name, text] of Object.entries(notTokens)) {
    t.notOk(secrets.isIn(text), name);
    t.equal(secrets.redact(text), text, name);
  }
  t.equal(secrets.redact(`a ${token} b ${token}`), 'a [redacted] b [redacted]');
  t.equal(secrets.mask('/v1/a%20b'), '/v1/a%20b', 'text without a token is unchanged');
  t.equal(secrets.mask('/v1/keys/lk%5Fk_'.concat(token.slice(5))), '/v1/keys/lk_k_…');
});

t.test('a token is rejected in every stored member, and the error names the path', async (t) => {
  const service = await startService(t);
  const { admin, operator, organizationId } = service;
  const receiver = await startReceiver(t);
  const webhook = await makeWebhook(service, { url: receiver.url });
  const { body: partner } = await admin.post('/v1/partners', { email: 'a@example.com', permissions: ['read'] });
  const { body: key } = await admin.post('/v1/keys', {});
  const { body: deletedKey } = await admin.post('/v1/keys', {});
  await admin.delete(`/v1/keys/${deletedKey.id}`);
  const { body: recovery } = await admin.post('/v1/recovery-requests', { keyId: deletedKey.id, details: 'x' });
  const before = (await admin.get('/v1/history?limit=1')).body;
  const named = { 'latchkey-organization': organizationId };

  type Attempt = [path: string, at: string, make: (text: string) => Json];
  const token = { role: 'admin', name: 'Bob', email: 'b@example.com', scopes: ['read'] };
  const attempts: Record<'post' | 'patch', Attempt[]> = {
    post: [
      ['/v1/keys', 'body.name', (name) => ({ name })],
      ['/v1/keys', 'body.scopes.0', (scope) => ({ scopes: [scope] })],
      ['/v1/keys', 'body.metadata.a.0.b', (b) => ({ metadata: { a: [{ b }] } })],
      ['/v1/partners', 'body.name', (name) => ({ email: 'c@example.com', permissions: ['read'], name })],
      ['/v1/partners', 'body.email', (email) => ({ email: `${email}@example.com`, permissions: ['read'] })],
      [`/v1/keys/${key.id}/reveal`, 'body.reason', (reason) => ({ reason })],
      [`/v1/keys/${key.id}/reveal`, 'body.recipient', (recipient) => ({ recipient })],
      ['/v1/access-tokens', 'body.name', (name) => ({ ...token, name })],
      ['/v1/access-tokens', 'body.email', (email) => ({ ...token, email })],
      ['/v1/webhooks', 'body.description', (description) => ({ url: receiver.url, events: ['*'], description })],
      ['/v1/webhooks', 'body.url', (text) => ({ url: `${receiver.url}?key=${text}`, events: ['*'] })],
      ['/v1/recovery-requests', 'body.details', (details) => ({ keyId: deletedKey.id, details })],
    ],
    patch: [
      [`/v1/keys/${key.id}`, 'body.name', (name) => ({ name })],
      [`/v1/keys/${key.id}`, 'body.scopes.1', (scope) => ({ scopes: ['a', scope] })],
      [`/v1/keys/${key.id}`, 'body.metadata.x', (x) => ({ metadata: { x } })],
      [`/v1/partners/${partner.id}`, 'body.name', (name) => ({ name })],
      [`/v1/webhooks/${webhook.id}`, 'body.description', (description) => ({ description })],
      ['/v1/organization', 'body.name', (name) => ({ name })],
    ],
  };
  for (const method of ['post', 'patch'] as const) {
    for (const [path, at, make] of attempts[method]) {
      for (const [disguise, text] of Object.entries(spellingsOf(aToken()))) {
        const { status, body } = await admin[method](path, make(text));
        t.match(
          { status, ...body },
          { status: 400, code: 'secret_in_text', errors: [{ path: at }] },
          `${at} ${disguise}`,
        );
        t.notMatch(JSON.stringify(body), text, `${at} ${disguise}: the problem does not repeat it`);
      }
    }
  }
  const ofOperator = (path: string, body: Json) => operator.post(path, body, named);
  for (const action of ['approve', 'decline']) {
    const reply = await ofOperator(`/v1/recovery-requests/${recovery.id}/${action}`, { note: `it was ${aToken()}` });
    t.match(reply, { status: 400, body: { code: 'secret_in_text', errors: [{ path: 'body.note' }] } }, action);
  }
  t.match(await operator.post('/v1/organizations', { name: aToken('o') }), {
    status: 400,
    body: { code: 'secret_in_text' },
  });
  t.same((await admin.get('/v1/history?limit=1')).body, before, 'no event was recorded');
});

t.test('a token with a Kelvin sign for its K is rejected, because a stored name is in NFC', async (t) => {
  const { admin } = await startService(t);
  let token = aToken();
  while (!token.includes('K')) token = aToken();
  const text = token.replace('K', '\u212a');
  t.equal(text.normalize('NFC'), token);
  const rejected = { status: 400, body: { code: 'secret_in_text' } };
  t.match(await admin.post('/v1/keys', { name: text }), rejected);
  t.match(await admin.post('/v1/keys', { name: `${token}\u0301` }), rejected, 'also if NFC changes its end');
  t.match(await admin.post('/v1/keys/import', { entries: [{ name: text, plaintext: 'x'.repeat(20) }] }), rejected);
  t.match((await admin.post('/v1/keys', { name: '300 \u212a' })).body, { name: '300 K' });
});

t.test('a token is rejected in member names and behind JSON escapes', async (t) => {
  const { app, admin } = await startService(t);
  const token = aToken();
  for (const [disguise, name] of Object.entries(spellingsOf(token))) {
    const { status, body } = await admin.post('/v1/keys', { metadata: { deep: { [name]: 1 } } });
    t.match(
      { status, ...body },
      { status: 400, code: 'secret_in_text', errors: [{ path: /^body\.metadata\.deep\./ }] },
    );
    t.notMatch(JSON.stringify(body), name, `${disguise}: the problem does not repeat it`);
  }
  const escaped = [...token].map((character) => `\\u00${character.charCodeAt(0).toString(16)}`).join('');
  const headers = { authorization: `Bearer ${admin.token}`, 'content-type': 'application/json' };
  const reply = await app.inject({ method: 'POST', url: '/v1/keys', headers, payload: `{"name":"${escaped}"}` });
  t.match(reply.json(), { status: 400, code: 'secret_in_text', errors: [{ path: 'body.name' }] });
  for (const name of [token.slice(0, -1), aToken('k', 'acme')]) {
    const accepted = await admin.post('/v1/keys', {
      name: 'x',
      metadata: { note: name.slice(0, 24), other: name.slice(30) },
    });
    t.equal(accepted.status, 201, 'a token of another installation is accepted');
    await admin.delete(`/v1/keys/${accepted.body.id}`);
  }
});

t.test('members for credentials accept tokens, and errors repeat no other member', async (t) => {
  const { app, admin, verifier } = await startService(t);
  const { body: created } = await admin.post('/v1/keys', {});
  const input = { key: created.key, permission: 'read' };
  t.match((await verifier.post('/v1/verify', input)).body, { valid: true });
  t.match((await verifier.post('/v1/verify/batch', { entries: [input] })).body, { data: [{ valid: true }] });
  const introspected = await app.inject({
    method: 'POST',
    url: '/v1/introspect',
    headers: { authorization: `Bearer ${verifier.token}`, 'content-type': 'application/x-www-form-urlencoded' },
    payload: `token=${created.key}`,
  });
  t.match(introspected.json(), { active: true });
  for (const text of Object.values(spellingsOf(created.key))) {
    const one = await verifier.post('/v1/verify', { ...input, [text]: 1 });
    t.match(one, { status: 400, body: { code: 'validation_failed' } });
    const many = await verifier.post('/v1/verify/batch', { entries: [{ ...input, [text]: 1 }] });
    t.match(many, { status: 200, body: { data: [{ code: 'validation_failed' }] } });
    for (const { body } of [one, many]) t.notMatch(JSON.stringify(body), text);
  }
});

t.test('a token in a query string is rejected in any spelling, and not repeated', async (t) => {
  const { app, admin } = await startService(t);
  const headers = { authorization: `Bearer ${admin.token}` };
  for (const [disguise, text] of Object.entries(spellingsOf(aToken()))) {
    for (const url of [`/v1/history?actorId=${text}`, `/v1/history?${text}=1`, `/v1/keys?limit=1?x=${text}`]) {
      const reply = await app.inject({ url: url.replaceAll(' ', '+'), headers });
      t.equal(reply.statusCode, 400, `${disguise}: ${url.slice(0, 16)}`);
      t.notOk(createSecretText('lk').isIn(reply.body), disguise);
    }
  }
});

t.test('tokens in paths, headers and endpoint replies are in no log, span, event, delivery or table', async (t) => {
  const token = aToken();
  const other = aToken('a');
  const service = await startService(t);
  const { app, admin, logLines, urls } = service;
  const receiver = await startReceiver(t);
  receiver.reply = (_call, response) => void response.end(`got ${token} and ${encoded(other)}`);
  await makeWebhook(service, { url: receiver.url, events: ['key.created'] });
  const sending = startSending(t, service);
  await app.listen({ host: '127.0.0.1', port: 0 });
  const { port } = app.server.address() as AddressInfo;
  /** Sends the path unchanged over a socket. */
  const call = async (method: string, path: string, headers: Record<string, string>) =>
    new Promise<{ status: number | undefined; requestId: unknown; text: string }>((resolve, reject) => {
      const sent = { 'content-type': 'application/json', connection: 'close', ...headers };
      const clientRequest = httpRequest({ host: '127.0.0.1', port, method, path, headers: sent });
      clientRequest.on('error', reject).on('response', async (response) => {
        const chunks: Buffer[] = [];
        for await (const chunk of response) chunks.push(chunk as Buffer);
        const text = Buffer.concat(chunks).toString('utf8');
        resolve({ status: response.statusCode, requestId: response.headers['x-request-id'], text });
      });
      clientRequest.end(method === 'POST' ? '{}' : undefined);
    });

  const authorization = `Bearer ${admin.token}`;
  const requestHeaders = {
    authorization,
    'user-agent': `curl/8 (${token}; ${encoded(other, 2)})`,
    'x-request-id': `a-${token}`,
  };
  const createdReply = await call('POST', '/v1/keys', requestHeaders);
  t.match(createdReply, { status: 201, requestId: 'a-[redacted]' });
  const { body: history } = await admin.get('/v1/history?action=key.created');
  t.match(history.data[0].request, { id: 'a-[redacted]', userAgent: 'curl/8 ([redacted]; [redacted])' });
  await eventually(async () => receiver.received.length === 1);

  for (const [disguise, text] of Object.entries(spellingsOf(token))) {
    const path = encodeURI(text).replaceAll('%25', '%').replaceAll('?', '%3F');
    for (const place of [`/v1/keys/${path}`, `/nothing/${path}`, `/v1/keys/${path}/usage`]) {
      const reply = await call('GET', place, requestHeaders);
      t.match(String(reply.status), /^40[04]$/, `${disguise} ${place.slice(0, 9)}`);
      t.notOk(service.app.secretText.isIn(reply.text), `${disguise} ${place.slice(0, 9)}: the problem`);
    }
  }
  const { isIn } = createSecretText('lk');
  await eventually(async () => {
    const { body } = await admin.get('/v1/webhooks');
    const { body: deliveries } = await admin.get(`/v1/webhooks/${body.data[0].id}/deliveries`);
    return deliveries.data[0]?.status === 'delivered';
  });
  for (const [place, lines] of Object.entries({ log: logLines, sender: sending.logLines })) {
    t.same(lines.filter(isIn), [], place);
  }
  for (const { body } of receiver.received) t.notOk(isIn(body.toString('utf8')), 'the delivered body');
  const dump = await dbDump(urls.superuser);
  t.match(dump, 'got lk_k_…', "the endpoint's reply is stored");
  t.same(dump.split('\n').filter(isIn), [], 'the database');
});
