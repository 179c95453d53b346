import fc from 'fast-check';
import { newId } from '../src/domain/ids.ts';
import { type Json, startService } from './support/app.ts';
import { t } from './support/tap.ts';

// Valid bodies and queries with one odd value.

/** The number of requests; raise it to search for more. */
const numRuns = Number(process.env['ODD_INPUTS'] ?? 250);

/** JSON text, because JSON.stringify cannot write some of these values. */
const oddValue = fc.oneof(
  fc.jsonValue({ depthSize: 'small' }).map((value) => JSON.stringify(value)),
  fc.constantFrom(
    ...[
      'null',
      '[]',
      '{}',
      '""',
      '" "',
      '0',
      '-0',
      '-1',
      '1.5',
      '1e21',
      '1e400',
      '9007199254740991',
      '9007199254740993',
    ],
    ...['2147483648', '4294967296', '"\\u0000"', '"\\ud800"', '"\\ufeff"', '"\\u202e"', '"9999-12-31T23:59:59.999Z"'],
    ...['"9999-12-31T23:59:59-01:00"', '"0000-01-01T00:00:00Z"', '"0001-01-01T00:00:00Z"', '"1970-01-01T00:00:00Z"'],
    ...[
      '"infinity"',
      '"::"',
      '"0.0.0.0/0"',
      '"::ffff:1.2.3.4/96"',
      '["::/0","::/0"]',
      '"http://[::1]:1/"',
      '"https://\\u0661"',
    ],
    ...[
      '"%"',
      '"\'; drop table x"',
      '"\\\\"',
      `"${'x'.repeat(300)}"`,
      `"${'\u{1f600}'.repeat(60)}"`,
      '{"constructor":1}',
    ],
  ),
  fc.string({ unit: 'binary', maxLength: 30 }).map((text) => JSON.stringify(text)),
);

t.test('no body and no query causes a server error', async (t) => {
  const { app, admin, operator, verifier, organizationId } = await startService(t);
  const { body: document } = { body: (await app.inject('/openapi.json')).json() as Json };
  const operations = Object.entries(document.paths as Record<string, Record<string, Json>>).flatMap(([path, methods]) =>
    Object.entries(methods).map(([method, operation]) => ({ path, method: method.toUpperCase(), operation })),
  );
  const tested = operations.filter(
    ({ method, path, operation }) =>
      path.startsWith('/v1/') &&
      // A gateway client gets 503 by design, and the stream of changes does not end.
      !['/v1/authorize', '/v1/changes'].includes(path) &&
      (operation.requestBody?.content['application/json'] !== undefined || (method === 'GET' && operation.parameters)),
  );
  t.ok(tested.length > 30, `${tested.length} operations`);
  const ids = await createResources(admin);
  const exampleOf = ({ operation }: Json): Json => {
    const { schema, example } = operation.requestBody.content['application/json'];
    return (
      example ?? schema.example ?? document.components.schemas[schema.$ref?.split('/').at(-1) ?? '']?.example ?? {}
    );
  };
  const callers = [admin, operator, verifier];

  await fc.assert(
    fc.asyncProperty(
      fc.constantFrom(...tested),
      fc.nat(),
      oddValue,
      fc.constantFrom(...callers),
      async (operation, place, odd, caller) => {
        const path = operation.path.replaceAll(/\{(\w+)Id\}/g, (_, name: string) => ids[name] ?? newId('key'));
        const request = {
          method: operation.method as 'POST',
          url: path,
          headers: { authorization: `Bearer ${caller.token}` },
        };
        const named = caller === operator ? { 'latchkey-organization': organizationId } : {};
        let response: { statusCode: number; body: string };
        if (operation.method === 'GET') {
          const names = operation.operation.parameters
            .filter((parameter: Json) => parameter.in === 'query')
            .map(({ name }: Json) => name);
          if (names.length === 0) return;
          const query = new URLSearchParams({ [names[place % names.length]]: textOf(odd) });
          response = await app.inject({
            ...request,
            url: `${path}?${query}`,
            headers: { ...request.headers, ...named },
          });
        } else {
          const example = Object.entries(exampleOf(operation) as Record<string, Json>);
          const members = example.map(([name, value], index) =>
            index === place % (example.length + 1)
              ? `${JSON.stringify(name)}:${odd}`
              : `${JSON.stringify(name)}:${JSON.stringify(value)}`,
          );
          const payload = place % (example.length + 1) === example.length ? odd : `{${members.join()}}`;
          const headers = { ...request.headers, ...named, 'content-type': 'application/json' };
          response = await app.inject({ ...request, headers, payload });
        }
        if (response.statusCode >= 500)
          throw new Error(`${request.method} ${path}: ${response.statusCode} ${response.body}`);
      },
    ),
    { numRuns },
  );
  for (const path of ['/v1/history?limit=200', '/v1/keys', '/v1/partners', '/v1/webhooks', '/v1/access-tokens']) {
    t.equal((await admin.get(path)).status, 200, `${path} lists everything that was stored`);
  }
});

/** A resource of each kind, for paths. */
async function createResources(admin: {
  post: (path: string, body: Json) => Promise<{ body: Json }>;
}): Promise<Record<string, string>> {
  const { body: key } = await admin.post('/v1/keys', {});
  const { body: partner } = await admin.post('/v1/partners', { email: 'odd@example.com', permissions: ['read'] });
  const { body: webhook } = await admin.post('/v1/webhooks', { url: 'http://127.0.0.1:9/', events: ['*'] });
  const { body: token } = await admin.post('/v1/access-tokens', { role: 'verifier', name: 'odd', scopes: ['read'] });
  return { key: key.id, partner: partner.id, webhook: webhook.id, token: token.id, accessToken: token.id };
}

/** A value as a query parameter: a string as it is, anything else as JSON. */
function textOf(json: string): string {
  const value: unknown = JSON.parse(json);
  return (typeof value === 'string' ? value : json).toWellFormed();
}
