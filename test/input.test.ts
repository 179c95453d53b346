import { type Json, startService } from './support/app.ts';
import { t } from './support/tap.ts';

const deep = (depth: number) => `${'{"a":'.repeat(depth)}1${'}'.repeat(depth)}`;
const metadata = (text: string) => `{"metadata":${text}}`;

interface Case {
  method?: 'GET' | 'POST' | 'PUT' | 'PATCH' | 'DELETE' | 'OPTIONS' | 'HEAD';
  url?: string;
  body?: string | Buffer;
  type?: string | null;
  headers?: Record<string, string>;
  status: number;
  code: string;
  path?: string;
}

/** Each is a request to `POST /v1/keys` unless it says otherwise. */
const table: Record<string, Case> = {
  'null for a string': { body: '{"permission":null}', status: 400, code: 'validation_failed', path: 'body.permission' },
  'an array for a string': { body: '{"name":["x"]}', status: 400, code: 'validation_failed', path: 'body.name' },
  'an object for a list': {
    body: '{"allowedIps":{}}',
    status: 400,
    code: 'validation_failed',
    path: 'body.allowedIps',
  },
  'text for a number': {
    body: '{"rateLimit":{"requests":"5","windowSeconds":60}}',
    status: 400,
    code: 'validation_failed',
    path: 'body.rateLimit.requests',
  },
  'an unknown member': { body: '{"nmae":"x"}', status: 400, code: 'validation_failed', path: 'body.nmae' },
  'a nested unknown member': {
    body: '{"rateLimit":{"requests":5,"windowSeconds":60,"burst":1}}',
    status: 400,
    code: 'validation_failed',
    path: 'body.rateLimit.burst',
  },
  'an unknown parameter': {
    url: '/v1/keys?dry=1',
    body: '{}',
    status: 400,
    code: 'validation_failed',
    path: 'query.dry',
  },
  'a parameter twice': {
    method: 'GET',
    url: '/v1/keys?limit=1&limit=2',
    status: 400,
    code: 'validation_failed',
    path: 'query.limit',
  },
  'a limit of zero': {
    method: 'GET',
    url: '/v1/keys?limit=0',
    status: 400,
    code: 'validation_failed',
    path: 'query.limit',
  },
  'a limit of 201': {
    method: 'GET',
    url: '/v1/keys?limit=201',
    status: 400,
    code: 'validation_failed',
    path: 'query.limit',
  },
  'a limit that is text': {
    method: 'GET',
    url: '/v1/keys?limit=1e1',
    status: 400,
    code: 'validation_failed',
    path: 'query.limit',
  },
  'a flag that is neither true nor false': {
    method: 'GET',
    url: '/v1/keys?includeDeleted=1',
    status: 400,
    code: 'validation_failed',
    path: 'query.includeDeleted',
  },
  'a malformed id in a body': {
    body: '{"partnerId":"x"}',
    status: 400,
    code: 'validation_failed',
    path: 'body.partnerId',
  },
  'an id of another kind': {
    body: '{"partnerId":"key_01k9s3v5wqe8n8x4r2m6t7yb0c"}',
    status: 400,
    code: 'validation_failed',
    path: 'body.partnerId',
  },
  'an expiry that is not a time': {
    body: '{"expiresAt":"tomorrow"}',
    status: 400,
    code: 'validation_failed',
    path: 'body.expiresAt',
  },
  'an expiry that does not exist': {
    body: '{"expiresAt":"2027-02-30T00:00:00Z"}',
    status: 400,
    code: 'validation_failed',
    path: 'body.expiresAt',
  },
  'an expiry with too many digits': {
    body: '{"expiresAt":"2099-01-01T00:00:00.0001Z"}',
    status: 400,
    code: 'validation_failed',
    path: 'body.expiresAt',
  },
  ...Object.fromEntries(
    [
      '9999-12-31T23:59:59-01:00',
      '9999-12-31T23:59:59.999-00:01',
      '0000-06-01T00:00:00Z',
      '0001-01-01T00:00:00+00:01',
    ].map((time) => [
      `an expiry of no year that has four digits in UTC: ${time}`,
      { body: JSON.stringify({ expiresAt: time }), status: 400, code: 'validation_failed', path: 'body.expiresAt' },
    ]),
  ),
  'a beginning after the year 9999': {
    method: 'GET',
    url: '/v1/history?from=9999-12-31T23:59:59-01:00',
    status: 400,
    code: 'validation_failed',
    path: 'query.from',
  },
  'an end before the year 1': {
    method: 'GET',
    url: '/v1/history?to=0000-01-01T00:00:00Z',
    status: 400,
    code: 'validation_failed',
    path: 'query.to',
  },
  'an invalid e-mail address': {
    body: '{"allowedIps":["10.0.0.0/33"]}',
    status: 400,
    code: 'validation_failed',
    path: 'body.allowedIps.0',
  },
  'a name of control characters': {
    body: '{"name":"a\\u0007b"}',
    status: 400,
    code: 'validation_failed',
    path: 'body.name',
  },
  'a name of 201 characters': {
    body: `{"name":"${'x'.repeat(201)}"}`,
    status: 400,
    code: 'validation_failed',
    path: 'body.name',
  },
  __proto__: {
    body: metadata('{"__proto__":{"admin":true}}'),
    status: 400,
    code: 'validation_failed',
    path: 'body.metadata.__proto__',
  },
  'a number that JavaScript reads as infinite': {
    body: metadata('{"a":[-1e999]}'),
    status: 400,
    code: 'validation_failed',
    path: 'body.metadata.a.0',
  },
  ...Object.fromEntries(
    [
      ...['9007199254740992', '9007199254740993', '-9007199254740993', '12345678901234567890'],
      ...[
        '12345678901234567890.0',
        '9007199254740993.0',
        '9007199254740993e0',
        '0.9007199254740993e16',
        '900719925474099300e-2',
      ],
      ...['1e400', '-1e400', '1e-400', '0.1234567890123456789', '1.23456789012345678e300'],
      // Too small for all digits, and whole numbers that a reply would write in a form that is rejected.
      ...['1.23456789e-320', '4.9e-324', '1e16', '-1e20', '9007199254740992.0', '100000000000000000.0'],
    ].map((number) => [
      `a number that a double changes: ${number}`,
      {
        body: metadata(`{"a":[1,{"b":${number}}]}`),
        status: 400,
        code: 'validation_failed',
        path: 'body.metadata.a.1.b',
      },
    ]),
  ),
  'a number that a double changes, where another member takes numbers': {
    body: '{"rateLimit":{"requests":5.00000000000000000001,"windowSeconds":60}}',
    status: 400,
    code: 'validation_failed',
    path: 'body.rateLimit.requests',
  },
  'U+0000 in a value': {
    body: metadata('{"a":"\\u0000"}'),
    status: 400,
    code: 'validation_failed',
    path: 'body.metadata.a',
  },
  'U+0000 in a member name': { body: metadata('{"a\\u0000":1}'), status: 400, code: 'validation_failed' },
  'a lone surrogate in a value': {
    body: metadata('{"a":"\\ud800"}'),
    status: 400,
    code: 'validation_failed',
    path: 'body.metadata.a',
  },
  'a lone surrogate in a member name': { body: metadata('{"\\udfff":1}'), status: 400, code: 'validation_failed' },
  'metadata over 16 KiB': {
    body: metadata(`{"a":"${'x'.repeat(16_400)}"}`),
    status: 400,
    code: 'validation_failed',
    path: 'body.metadata',
  },
  'a member twice': { body: '{"name":"a","name":"b"}', status: 400, code: 'validation_failed', path: 'body.name' },
  'a member twice, written in two ways': {
    body: '{"name" : "a","n\\u0061me":"a"}',
    status: 400,
    code: 'validation_failed',
    path: 'body.name',
  },
  'a nested member twice': {
    body: metadata('{"a":[{"x":"\\"{,"},{"b":{"c":1},"d":{"c":2},"b":[]}]}'),
    status: 400,
    code: 'validation_failed',
    path: 'body.metadata.a.1.b',
  },
  'an empty body': { body: '', status: 400, code: 'validation_failed', path: 'body' },
  'a body that is a list': { body: '[]', status: 400, code: 'validation_failed', path: 'body' },
  'a body that is null': { body: 'null', status: 400, code: 'validation_failed', path: 'body' },
  'no body at all': { type: null, status: 400, code: 'validation_failed', path: 'body' },
  'half a body': { body: '{"name":', status: 400, code: 'bad_request' },
  'a body that is no UTF-8': { body: Buffer.from([0x7b, 0x22, 0xff, 0x22, 0x7d]), status: 400, code: 'bad_request' },
  'a body over 64 KiB': { body: `{"name":"${'x'.repeat(65_536)}"}`, status: 413, code: 'payload_too_large' },
  'a body of depth 1,000': { body: metadata(deep(1_000)), status: 400, code: 'bad_request' },
  'a form': { body: 'name=x', type: 'application/x-www-form-urlencoded', status: 415, code: 'unsupported_media_type' },
  'plain text': { body: '{}', type: 'text/plain', status: 415, code: 'unsupported_media_type' },
  'a body without a type': { body: '{}', type: null, status: 415, code: 'unsupported_media_type' },
  'a body for a route that takes none': {
    method: 'DELETE',
    url: '/v1/keys/key_01k9s3v5wqe8n8x4r2m6t7yb0c',
    body: '{"reason":"other"}',
    status: 400,
    code: 'validation_failed',
    path: 'body.reason',
  },
  'an unknown path': { method: 'GET', url: '/v1/kyes', status: 404, code: 'not_found' },
  'bad percent-encoding': { method: 'GET', url: '/v1/keys/%zz', status: 400, code: 'bad_request' },
  'a percent-encoded half of a character': { method: 'GET', url: '/v1/keys/%c3%28', status: 400, code: 'bad_request' },
  'U+0000 in a path': { method: 'GET', url: '/v1/keys/key_%00', status: 404, code: 'not_found' },
  'U+0000 in a query': {
    method: 'GET',
    url: '/v1/history?actorId=a%00b',
    status: 400,
    code: 'validation_failed',
    path: 'query.actorId',
  },
  'an over-long id': { method: 'GET', url: `/v1/keys/${'x'.repeat(1_000)}`, status: 404, code: 'not_found' },
  'a malformed id in a path': { method: 'GET', url: '/v1/keys/1', status: 404, code: 'not_found' },
  'a credential of another scheme': {
    headers: { authorization: 'Basic YTpi' },
    body: '{}',
    status: 401,
    code: 'unauthorized',
  },
  'two credentials that differ': { headers: { 'x-api-key': 'other' }, body: '{}', status: 400, code: 'bad_request' },
  'a token in the query string': { url: '/v1/keys?access_token=lk_a_x', body: '{}', status: 400, code: 'bad_request' },
  'a path with a trailing slash': { method: 'GET', url: '/v1/keys/', status: 404, code: 'not_found' },
};

t.test('every kind of bad input is a problem that says what and where', async (t) => {
  const { app, admin } = await startService(t);
  const before = (await admin.get('/v1/history?limit=200')).body;
  for (const [
    name,
    { method = 'POST', url = '/v1/keys', body, type, headers = {}, status, code, path },
  ] of Object.entries(table)) {
    await t.test(name, async (t) => {
      const contentType: Record<string, string> =
        type === null || body === undefined ? {} : { 'content-type': type ?? 'application/json' };
      const response = await app.inject({
        method,
        url,
        headers: { authorization: `Bearer ${admin.token}`, ...contentType, ...headers },
        ...(body === undefined ? {} : { payload: body }),
      });
      const problem = response.json() as Json;
      t.equal(response.statusCode, status);
      t.equal(response.headers['content-type'], 'application/problem+json; charset=utf-8');
      t.equal(response.headers['cache-control'], 'no-store');
      t.equal(response.headers['x-request-id'], problem.requestId);
      t.match(problem, { type: `/problems/${code}`, title: /\w/, status, code, detail: /\w/ });
      if (path !== undefined) t.equal(problem.errors?.[0]?.path, path);
    });
  }
  t.same((await admin.get('/v1/history?limit=200')).body, before, 'no event was recorded');
  t.same((await admin.get('/v1/keys')).body.data, []);
});

t.test('equal member names in different objects are accepted', async (t) => {
  const { app, admin } = await startService(t);
  const headers = { authorization: `Bearer ${admin.token}`, 'content-type': 'application/json' };
  const text = '{"a":{"a":[{"a":1},{"a":"\\"a\\":1,\\"a\\":"}],"b":["a","a"]},"":{"":""}}';
  const reply = await app.inject({ method: 'POST', url: '/v1/keys', headers, payload: metadata(text) });
  t.equal(reply.statusCode, 201);
  t.same(reply.json().metadata, JSON.parse(text));
});

t.test('numbers and times that can be stored exactly are returned unchanged', async (t) => {
  const { app, admin } = await startService(t);
  const headers = { authorization: `Bearer ${admin.token}`, 'content-type': 'application/json' };
  const numbers = [
    ...[
      '9007199254740991',
      '-9007199254740991',
      '0.1',
      '0.30000000000000004',
      '0.10000000000000001',
      '123456789012345.67',
    ],
    ...['1e21', '1.7976931348623157e308', '5e-324', '10.50', '-0', '0.000e99', '1E3'],
  ];
  const payload = `{"metadata":{"numbers":[${numbers.join()}],"text":"12345678901234567890, 1e400"}}`;
  const created = await app.inject({ method: 'POST', url: '/v1/keys', headers, payload });
  t.equal(created.statusCode, 201);
  const { body: key } = await admin.get(`/v1/keys/${created.json().id}`);
  // JavaScript writes no negative zero to JSON.
  t.same(key.metadata, { numbers: numbers.map((number) => Number(number) + 0), text: '12345678901234567890, 1e400' });
  t.equal(
    (await admin.patch(`/v1/keys/${key.id}`, { metadata: key.metadata })).status,
    200,
    'the returned value is accepted again',
  );
  for (const expiresAt of ['9999-12-31T23:59:59.999Z', '9999-12-31T22:59:59-01:00', '9999-12-31T23:59:59+14:00']) {
    const { body } = await admin.patch(`/v1/keys/${key.id}`, { expiresAt });
    t.equal(Date.parse(body.expiresAt), Date.parse(expiresAt));
    t.match(body.expiresAt, /^9999-12-31T[\d:]{8}\.\d{3}Z$/);
    t.equal(
      (await admin.patch(`/v1/keys/${key.id}`, { expiresAt: body.expiresAt })).status,
      200,
      'the returned value is accepted again',
    );
  }
  for (const query of [
    'to=9999-12-31T23:30:00Z&from=9999-12-31T00:00:00Z',
    'to=0001-01-01T00:30:00Z',
    'granularity=day&to=0001-01-02T00:00:00Z',
  ]) {
    const { status, body } = await admin.get(`/v1/keys/${key.id}/usage?${query}`);
    t.match({ status, ...body }, { status: 400, code: 'validation_failed', errors: [{ path: 'query.to' }] }, query);
  }
});

t.test('every problem type has a page', async (t) => {
  const { app } = await startService(t);
  const list = (await app.inject('/problems')).json() as Json;
  for (const { code, type, status } of list.data) {
    const response = await app.inject(type);
    t.equal(response.statusCode, 200);
    t.match(response.json(), { code, status, explanation: /\.$/, remedy: /\.$/ });
  }
  t.equal((await app.inject('/problems/nonsense')).statusCode, 404);
  t.equal((await app.inject('/problems/toString')).statusCode, 404);
});

t.test('a wrong method on a known path is 405 with Allow', async (t) => {
  const { app, admin } = await startService(t);
  const send = (method: string, url: string) =>
    app.inject({ method: method as 'GET', url, headers: { authorization: `Bearer ${admin.token}` } });
  for (const [method, url, allow] of [
    ['PUT', '/v1/keys', 'GET, HEAD, POST'],
    ['DELETE', '/v1/rows', 'GET, HEAD'],
    ['POST', '/v1/keys/key_x', 'DELETE, GET, HEAD, PATCH'],
    ['GET', '/v1/keys/key_x/reveal', 'POST'],
    ['GET', '/v1/verify', 'POST'],
    ['OPTIONS', '/v1/verify', 'POST'],
    ['POST', '/livez', 'GET, HEAD'],
    ['QUERY', '/v1/keys', 'GET, HEAD, POST'],
    ['PROPFIND', '/v1/keys', 'GET, HEAD, POST'],
  ] as const) {
    const response = await send(method, url);
    t.equal(response.statusCode, 405, `${method} ${url}`);
    t.equal(response.headers['allow'], allow);
    t.equal(response.json().code, 'method_not_allowed');
  }
  t.equal((await send('QUERY', '/nothing')).json().code, 'not_found');
});

t.test('the API console loads everything from its own origin, also over plain HTTP', async (t) => {
  const { app } = await startService(t);
  const page = await app.inject({ url: '/docs/' });
  const policy = String(page.headers['content-security-policy']);
  t.match(policy, "default-src 'self';");
  t.notMatch(policy, /https?:|upgrade-insecure-requests|unsafe|\*/);
  const parts = [...page.body.matchAll(/(?:src|href)="([^"]+)"/g)].map(([, part = '']) => part);
  t.ok(parts.length >= 5, `it has ${parts.length} parts`);
  for (const part of parts) {
    const { pathname } = new URL(part, 'http://x/docs/');
    t.equal((await app.inject({ url: pathname })).statusCode, 200, pathname);
  }
});

t.test('the same credential in both headers is accepted, and one header is enough', async (t) => {
  const { app, admin } = await startService(t);
  for (const headers of [
    { 'x-api-key': admin.token },
    { authorization: `bearer ${admin.token}` },
    { authorization: `Bearer ${admin.token}`, 'x-api-key': admin.token },
  ]) {
    t.equal((await app.inject({ url: '/v1/keys', headers })).statusCode, 200);
  }
});

t.test('a valid X-Request-Id is kept, any other is replaced', async (t) => {
  const { app } = await startService(t);
  const idOf = async (requestId: string) =>
    (await app.inject({ url: '/livez', headers: { 'x-request-id': requestId } })).headers['x-request-id'];
  t.equal(await idOf('Trace:1.2_3-4'), 'Trace:1.2_3-4');
  for (const bad of ['', 'a b', 'x'.repeat(129), 'ü', '<script>', 'a\tb']) t.not(await idOf(bad), bad);
});

t.test('an uncaught error gives a generic 500, and the log has its cause with the same request id', async (t) => {
  const service = await startService(t);
  const { admin, client, logLines } = service;
  const realConnect = client.pool.connect;
  client.pool.connect = () => {
    throw new Error('the inner cause');
  };
  const reply = await admin.get('/v1/keys');
  client.pool.connect = realConnect;
  t.equal(reply.status, 500);
  t.same(reply.body.detail, 'An unexpected error occurred in Latchkey. The log has its cause under this request id.');
  const line = logLines.find((text) => text.includes('the inner cause'));
  t.equal(JSON.parse(line ?? '{}').reqId, reply.body.requestId);
});
