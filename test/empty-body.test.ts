import { execFile } from 'node:child_process';
import { promisify } from 'node:util';
import type { RouteOptions } from 'fastify';
import type { z } from 'zod';
import { newId } from '../src/domain/ids.ts';
import type { AccessRule } from '../src/http/access.ts';
import { type Json, startService, type TestService } from './support/app.ts';
import { listen, openRaw } from './support/raw-client.ts';
import { t } from './support/tap.ts';

// Many clients send a content type with an empty body. Zero bytes count as no body, whatever the type.

const lengthOfZero = 'Content-Length: 0';
const types = [
  'application/json',
  'application/json; charset=utf-8',
  'application/x-www-form-urlencoded',
  'text/plain;charset=UTF-8',
  'multipart/form-data; boundary=x',
  'nonsense',
];

/** The headers that describe the body, and its bytes. */
const shapes: Record<string, { lines: string[]; bytes?: string }> = {
  'no length and no type': { lines: [] },
  'fetch without a body': { lines: [lengthOfZero] },
  'chunks and no type': { lines: ['Transfer-Encoding: chunked'], bytes: '0\r\n\r\n' },
};
for (const type of types) {
  shapes[`axios, no length: ${type}`] = { lines: [`Content-Type: ${type}`] };
  shapes[`curl -d '': ${type}`] = { lines: [`Content-Type: ${type}`, lengthOfZero] };
  shapes[`chunks: ${type}`] = { lines: [`Content-Type: ${type}`, 'Transfer-Encoding: chunked'], bytes: '0\r\n\r\n' };
}

interface Answer {
  status: number;
  body: Json;
}

async function startSending(t: Parameters<typeof startService>[0]) {
  const service = await startService(t);
  const port = await listen(service.app);
  const client = await openRaw(t, port);
  let received = '';
  let onReply: () => void = () => undefined;
  client.socket.on('data', (chunk) => {
    received += chunk;
    onReply();
  });
  /** Requests share one connection, so leftover bytes of a body would be noticed. */
  const send = async (request: string, token: string, { lines, bytes = '' }: (typeof shapes)[string]) => {
    received = '';
    client.write(
      [`${request} HTTP/1.1`, 'Host: x', `Authorization: Bearer ${token}`, ...lines, '', bytes].join('\r\n'),
    );
    return await new Promise<Answer>((resolve) => {
      onReply = () => {
        const [head = '', body = ''] = received.split('\r\n\r\n');
        const length = Number(/^content-length: (\d+)$/im.exec(head)?.[1] ?? 0);
        if (!received.includes('\r\n\r\n') || Buffer.byteLength(body) < length) return;
        resolve({ status: Number(head.slice(9, 12)), body: /json/.test(head) ? JSON.parse(body) : body });
      };
    });
  };
  return { ...service, port, send };
}

const ruleOf = (route: RouteOptions) => route.config?.access as AccessRule;

function tokenFor({ admin, operator, verifier }: TestService, rule: AccessRule): string {
  if (rule === 'public' || rule.role === 'any' || rule.role === 'gateway' || rule.role === 'api_key')
    return admin.token;
  return { admin, operator, verifier }[rule.role].token;
}

t.test('every route accepts zero bytes as no body, whatever their content type', async (t) => {
  const service = await startSending(t);
  const { app, send } = service;
  const routes = app.routeList.filter((route) => {
    const rule = ruleOf(route);
    return [route.method].flat().some((method) => method !== 'HEAD') && (rule === 'public' || rule.role !== 'gateway');
  });
  t.ok(routes.length > 40, 'the list has the routes of the service');
  let required = 0;
  for (const route of routes) {
    // These replies are files, or sent in chunks.
    if (['/v1/changes', '/v1/history/export'].includes(route.url) || route.url.startsWith('/docs')) continue;
    const kinds: Record<string, Parameters<typeof newId>[0]> = { accessTokenId: 'token', organizationId: 'org' };
    const path = route.url.replaceAll(/:(\w+)/g, (_, name: string) =>
      name === 'code' ? 'not_found' : newId(kinds[name] ?? (/^[a-z]+/.exec(name)?.[0] as 'key')),
    );
    for (const method of [route.method].flat().filter((method) => method !== 'HEAD')) {
      const token = tokenFor(service, ruleOf(route));
      const body = route.schema?.body as z.ZodType | undefined;
      const needsBody = body !== undefined && !body.safeParse(null).success;
      const mediaType = route.url === '/v1/introspect' ? 'a form' : 'a JSON body';
      const plain = await send(`${method} ${path}`, token, { lines: [] });
      for (const [what, shape] of Object.entries(shapes)) {
        const answer = await send(`${method} ${path}`, token, shape);
        const name = `${method} ${route.url}, ${what}`;
        if (!needsBody) t.equal(answer.status, plain.status, name);
        else {
          required += 1;
          t.match(answer, { status: 400, body: { code: 'validation_failed', errors: [{ path: 'body' }] } }, name);
          t.match(answer.body.errors[0].message, `is required: ${mediaType}`, name);
        }
      }
    }
  }
  t.ok(required > 0);
});

t.test('operations without a required body work without one', async (t) => {
  const service = await startSending(t);
  const { admin, send } = service;
  for (const [what, shape] of Object.entries(shapes)) {
    const { body: key } = await admin.post('/v1/keys', {});
    const rotated = await send(`POST /v1/keys/${key.id}/rotate`, admin.token, shape);
    t.match(rotated, { status: 201, body: { replacesKeyId: key.id } }, `rotate, ${what}`);
    const revealed = await send(`POST /v1/keys/${rotated.body.id}/reveal`, admin.token, shape);
    t.match(revealed, { status: 200, body: { key: rotated.body.key } }, `reveal, ${what}`);
    for (const { id } of [key, rotated.body]) {
      t.equal((await send(`DELETE /v1/keys/${id}`, admin.token, shape)).status, 200, `delete, ${what}`);
    }
    const { body: history } = await admin.get(`/v1/keys/${rotated.body.id}/history?limit=1`);
    t.match(history.data[0], { action: 'key.deleted' });
  }
});

t.test('a body with bytes is checked by its type, also in chunks', async (t) => {
  const { admin, send } = await startSending(t);
  const lines = (type: string) => [`Content-Type: ${type}`, 'Transfer-Encoding: chunked'];
  const bytes = '1\r\n{\r\n1\r\n}\r\n0\r\n\r\n';
  t.equal((await send('POST /v1/keys', admin.token, { lines: lines('application/json'), bytes })).status, 201);
  t.equal((await send('POST /v1/keys', admin.token, { lines: lines('text/plain'), bytes })).status, 415);
});

t.test('curl and fetch can send requests with an empty body', async (t) => {
  const { admin, port } = await startSending(t);
  const newKeyUrl = async () => `http://127.0.0.1:${port}/v1/keys/${(await admin.post('/v1/keys', {})).body.id}`;
  const headers = { authorization: `Bearer ${admin.token}`, 'content-type': 'application/json' };
  t.equal((await fetch(await newKeyUrl(), { method: 'DELETE', headers })).status, 200);
  t.equal((await fetch(await newKeyUrl(), { method: 'DELETE', headers, body: '' })).status, 200);
  const stream = new ReadableStream({ start: (controller) => controller.close() });
  const streamed = { method: 'DELETE', headers, body: stream, duplex: 'half' } as RequestInit;
  t.equal((await fetch(await newKeyUrl(), streamed)).status, 200);
  const curl = async (...options: string[]) => {
    const asAdmin = ['-s', '-o', '/dev/null', '-w', '%{http_code}', '-H', `Authorization: Bearer ${admin.token}`];
    return (await promisify(execFile)('curl', [...asAdmin, ...options])).stdout;
  };
  t.equal(await curl('-X', 'DELETE', '-d', '', await newKeyUrl()), '200');
  t.equal(await curl('-d', '', `${await newKeyUrl()}/rotate`), '201');
});
