import type { Test } from 'tap';
import {
  type LatchkeyOptions as ExpressOptions,
  type MiddlewareRequest,
  latchkey as middlewareOf,
} from '../clients/node/src/express.ts';
import { type LatchkeyOptions as FetchOptions, latchkey as guardOf } from '../clients/node/src/fetch.ts';
import type { Json } from './support/app.ts';
import { startBackend, startListening } from './support/hook.ts';
import { listenBehind } from './support/middleware.ts';
import { compiled, eventually, run } from './support/process.ts';
import { t } from './support/tap.ts';

// `@latchkey/client/express` without Express, and `@latchkey/client/fetch` without a server: what they let pass, and when.

interface Reply {
  status: number;
  body: Json;
  headers: Headers;
  /** How often the application's handler has run. */
  handled: number;
}

async function startStory(t: Test) {
  const service = await startListening(t);
  const { body: partner } = await service.admin.post('/v1/partners', { email: 'r@p.example', permissions: ['read'] });
  const { body: own } = await service.admin.post('/v1/keys', {});
  const access = { url: service.url, token: service.verifier.token };
  return { ...service, access, reading: partner.keys[0], own };
}

/** A server whose handler runs behind the middleware. It answers an error with 500, as Express does. */
async function startServer(
  t: Test,
  options: ExpressOptions,
  {
    needs = {},
    prepare = () => undefined,
  }: {
    needs?: Parameters<ReturnType<typeof middlewareOf>['needing']>[0];
    prepare?: (request: MiddlewareRequest) => void;
  } = {},
) {
  const middleware = middlewareOf(options);
  const route = middleware.needing(needs);
  let handled = 0;
  const url = await listenBehind(t, middleware, (request, response) => {
    prepare(request);
    route(request, response, (error) => {
      if (error === undefined) handled += 1;
      if (response.headersSent) return;
      response.statusCode = error === undefined ? 200 : 500;
      response.end(JSON.stringify({ id: (request as MiddlewareRequest).apiKey?.id, error: String(error) }));
    });
  });
  const ask = async (key: string | undefined, init: RequestInit & { path?: string } = {}): Promise<Reply> => {
    const headers = key === undefined ? {} : { authorization: `Bearer ${key}` };
    const before = handled;
    const response = await fetch(`${url}${init.path ?? '/'}`, { headers, ...init });
    const text = await response.text();
    const body = text.startsWith('{') ? JSON.parse(text) : {};
    return { status: response.status, body, headers: response.headers, handled: handled - before };
  };
  return { ask, middleware };
}

t.test('the middleware admits a good key once, and rejects everything else before the handler', async (t) => {
  const { access, reading, own } = await startStory(t);
  const { ask } = await startServer(t, { ...access, rateLimitFields: true });
  t.match(await ask(reading.key), { status: 200, handled: 1, body: { id: reading.id } });
  t.match((await ask(reading.key)).headers.get('ratelimit'), /^"owner";r=\d+;t=\d+$/);
  t.match(await ask(reading.key, { method: 'DELETE' }), { status: 403, handled: 0, body: { code: 'forbidden' } });
  t.match(await ask(own.key, { method: 'DELETE' }), { status: 200, handled: 1 });
  t.match(await ask(undefined), { status: 401, handled: 0, body: { code: 'unauthorized' } });
  t.match(await ask(own.key, { path: `/?key=${own.key}` }), { status: 400, handled: 0 });
  const rejected = await ask('no-key');
  t.match(rejected, { status: 401, handled: 0 });
  t.equal(rejected.headers.get('cache-control'), 'no-store');
  t.match(rejected.headers.get('content-type'), /^application\/problem\+json/);
});

t.test('a property `apiKey` of the application admits nobody', async (t) => {
  const { access, reading } = await startStory(t);
  const forged = { id: 'forged' };
  const prepares: Record<string, (request: MiddlewareRequest) => void> = {
    null: (request) => Object.assign(request, { apiKey: null }),
    'a value': (request) => Object.assign(request, { apiKey: forged }),
    'a getter of the prototype': (request) =>
      Object.setPrototypeOf(request, Object.create(Object.getPrototypeOf(request), { apiKey: { get: () => forged } })),
  };
  for (const [name, prepare] of Object.entries(prepares)) {
    const { ask } = await startServer(t, access, { prepare });
    t.match(await ask(undefined), { status: 401, handled: 0 }, name);
    t.match(await ask(reading.key), { status: 200, handled: 1, body: { id: reading.id } }, name);
  }
});

t.test('whatever the application throws while a request is decided, its handler does not run', async (t) => {
  const { access, reading } = await startStory(t);
  for (const thrown of [undefined, null, 0, false, '', 'route', new Error('mine')]) {
    const fail = () => {
      throw thrown;
    };
    const byCost = await startServer(t, { ...access, cost: fail });
    t.match(await byCost.ask(reading.key), { status: 500, handled: 0 }, `cost throws ${String(thrown)}`);
    const byDenial = await startServer(t, { ...access, onDenied: () => Promise.reject(thrown) });
    t.match(await byDenial.ask(undefined), { status: 500, handled: 0 }, `onDenied rejects with ${String(thrown)}`);
    const hook = await startBackend(t, { ...access, cost: fail });
    t.equal(await hook.status(reading.key), 500, `the Fastify hook, when cost throws ${String(thrown)}`);
  }
});

t.test('onDenied replies in the way of the application, and cannot admit a request', async (t) => {
  const { access } = await startStory(t);
  const own = await startServer(t, {
    ...access,
    onDenied({ code }, _request, response) {
      response.statusCode = 418;
      response.end(JSON.stringify({ mine: code }));
    },
  });
  t.match(await own.ask(undefined), { status: 418, handled: 0, body: { mine: 'unauthorized' } });
  const silent = await startServer(t, {
    ...access,
    onDenied(_denial, request) {
      Object.assign(request, { apiKey: { id: 'forged' } });
    },
  });
  t.match(await silent.ask(undefined), { status: 401, handled: 0, body: { code: 'unauthorized' } });
});

t.test('a route has its own needs, and those of the middleware that it does not name', async (t) => {
  const { access, reading, own, admin } = await startStory(t);
  await admin.put('/v1/rate-limit', { requests: 1_000, windowSeconds: 3_600 });
  const search = await startServer(t, access, { needs: { permission: 'read' } });
  t.match(await search.ask(reading.key, { method: 'POST' }), { status: 200, handled: 1 });
  const strict = { ...access, permission: 'write', rateLimitFields: true } as const;
  const { ask } = await startServer(t, strict, { needs: { cost: () => 100 } });
  t.match(await ask(reading.key), { status: 403, handled: 0 }, 'the permission of the middleware');
  const { status, headers } = await ask(own.key);
  t.equal(status, 200);
  t.match(headers.get('ratelimit'), /r=900;/, 'the cost of the route');
  t.throws(
    () => middlewareOf({ ...access, permission: 'raed' as 'read' }),
    /permission must be read or write, but is raed/,
  );
  t.throws(() => middlewareOf({ ...access, header: '' }), /header must be the name of a header/);
});

t.test('an impossible option leaves nothing behind that keeps the process alive', async (t) => {
  const { access } = await startStory(t);
  const script = `
    import { latchkey } from ${JSON.stringify(compiled('clients/node/src/express.ts'))};
    for (const wrong of [{ permission: 'raed' }, { scopes: ['a b'] }, { header: '' }]) {
      try { latchkey({ ...${JSON.stringify(access)}, ...wrong }); } catch (error) { console.log(error.message); }
    }`;
  const child = run(t, process.execPath, ['--input-type=module', '-e', script]);
  const timeout = setTimeout(() => child.child.kill(), 10_000);
  t.same(await child.exited, { code: 0, signal: null });
  clearTimeout(timeout);
  t.equal(child.stdout().trim().split('\n').length, 3, child.output());
});

t.test('the header of the application replaces the usual ones', async (t) => {
  const { access, reading } = await startStory(t);
  const { ask } = await startServer(t, { ...access, header: 'X-Acme-Key' });
  t.match(await ask(undefined, { headers: { 'x-acme-key': reading.key } }), { status: 200, handled: 1 });
  const usual = await ask(reading.key);
  t.match(usual, { status: 401, handled: 0, body: { detail: 'Send an API key in X-Acme-Key.' } });
});

t.test('the guard returns the key of a request, or the response to a rejected one', async (t) => {
  const { access, reading, own } = await startStory(t);
  const start = (options: Partial<FetchOptions> = {}) => {
    const guard = guardOf({ ...access, ...options });
    t.teardown(() => guard.close());
    return guard;
  };
  const guard = start();
  const check = (headers: Record<string, string> | Headers, method = 'GET', url = 'https://api.example/issues') =>
    guard.check(new Request(url, { method, headers }));
  const statusOf = async (checked: ReturnType<typeof check>) => (await checked).response?.status;
  await eventually(async () => guard.isLive());
  t.match(await check({ 'x-api-key': reading.key }), { apiKey: { id: reading.id }, response: undefined });
  t.match((await check({ 'x-api-key': reading.key })).rateLimitFields?.['ratelimit'], /^"owner";r=/);
  t.equal(await statusOf(check({ 'x-api-key': reading.key }, 'POST')), 403);
  t.equal(await statusOf(check({})), 401);
  t.equal(await statusOf(check({ 'x-api-key': own.key, authorization: `Bearer ${reading.key}` })), 400);
  t.equal(await statusOf(check({}, 'GET', `https://api.example/?k=${own.key}`)), 400);
  const twice = (first: string, second: string) => {
    const headers = new Headers({ authorization: `Bearer ${first}` });
    headers.append('authorization', `Bearer ${second}`);
    return headers;
  };
  t.equal(await statusOf(check(twice(own.key, reading.key))), 400, 'two different ones');
  t.equal(await statusOf(check(twice(own.key, own.key))), undefined, 'the same one twice');

  const logging = start({ onDenied: () => undefined });
  const rejected = await logging.check(new Request('https://api.example/'));
  t.equal(rejected.response?.status, 401, 'a request stays rejected if onDenied returns nothing');
  t.match(await rejected.response?.json(), { status: 401, code: 'unauthorized' });
  const replying = start({ onDenied: ({ status }) => new Response('mine', { status }) });
  const { response } = await replying.check(new Request('https://api.example/'));
  t.equal(await response?.text(), 'mine');
  await t.rejects(
    guard.check(new Request('https://api.example/'), { permission: 'raed' as 'read' }),
    /permission must be read or write/,
  );
});
