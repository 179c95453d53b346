import type { FastifyRequest, RouteOptions } from 'fastify';
import fp from 'fastify-plugin';
import { z } from 'zod';
import { createSecretText, type SecretText } from '../crypto/secret-text.ts';
import { Problem, validationProblem } from '../domain/errors.ts';
import { decodePercent } from '../lib/decode-percent.ts';
import { isForGateways } from './access.ts';
import { hasBody } from './empty-body.ts';
import { commonHeaders } from './problem.ts';

const emptyObject = z.strictObject({});
const emptyBodySchema = emptyObject.nullish();

/** A plugin scope with this decorator registers routes of a library, such as the files of /docs. They are public. */
export const libraryRoutes = 'libraryRoutes';

declare module 'fastify' {
  interface FastifyRequest {
    /** The config of the request's route. Read once, because Fastify copies route options at each access. */
    routeConfig: FastifyContextConfig;
  }
  interface FastifyInstance {
    /** All routes, as declared. */
    routeList: RouteOptions[];
    /** Finds and masks this installation's tokens. */
    secretText: SecretText;
  }
}

/**
 * Enforces declarations: the service does not start if a route declares no access or no response, and a route that declares
 * no query or body accepts none. Also checks what all requests have in common, and sets the headers of every reply.
 */
export const strictRoutes = fp<{ tokenPrefix: string }>(
  async (app, { tokenPrefix }) => {
    app.decorate('routeList', []);
    app.decorate('secretText', createSecretText(tokenPrefix));
    // Let the hook below reject it with a problem.
    app.server.on('checkExpectation', (request, response) => app.server.emit('request', request, response));
    app.addHook('onRoute', function (route) {
      app.routeList.push(route);
      if (this.hasDecorator(libraryRoutes)) {
        route.config = { ...route.config, access: 'public' };
        return;
      }
      requireDeclarations(route);
      route.schema = { ...route.schema, querystring: route.schema?.querystring ?? emptyObject };
      if (takesBody(route)) route.schema.body ??= emptyBodySchema;
    });
    app.decorateRequest('routeConfig');
    app.addHook('onRequest', (request, reply, done) => {
      const config = request.routeOptions.config;
      request.routeConfig = config;
      reply.headers(commonHeaders(request.id));
      requireHost(request);
      // Requests of a gateway carry its client's headers; only the credential matters.
      if (!isForGateways(config.access)) {
        requireMetExpectation(request);
        requirePlainBody(request);
        refuseTokenInUrl(request, app.secretText);
        refuseNulInUrl(request);
      }
      done();
    });
  },
  { name: 'strict-routes' },
);

function requireDeclarations(route: RouteOptions): void {
  const name = `${String(route.method)} ${route.url}`;
  if (route.config?.access === undefined) throw new Error(`${name} declares no config.access`);
  if (isChangingPost(route) && route.config.idempotencyKey === undefined) {
    throw new Error(`${name} declares no config.idempotencyKey`);
  }
  const response = route.schema?.response as Record<string, unknown> | undefined;
  if (response === undefined || !Object.keys(response).some((status) => status.startsWith('2'))) {
    throw new Error(`${name} declares no response schema for its success`);
  }
}

/** Whether a POST changes something, by the role and scope that it requires. */
function isChangingPost({ method, config }: RouteOptions): boolean {
  const access = config?.access;
  if (![method].flat().includes('POST') || access === undefined || access === 'public') return false;
  if (access.role === 'api_key') return true;
  return (access.role === 'admin' || access.role === 'operator') && access.scope !== 'read';
}

/** Whether a route accepts only an empty body, `null` or `{}`. */
export function isBodyless(route: RouteOptions): boolean {
  return route.schema?.body === emptyBodySchema;
}

function takesBody(route: RouteOptions): boolean {
  return [route.method].flat().some((method) => method !== 'GET' && method !== 'HEAD');
}

/** RFC 9112 section 3.2: an HTTP/1.1 request must have exactly one valid Host header. */
function requireHost({ raw }: FastifyRequest): void {
  let hosts = 0;
  const { rawHeaders } = raw;
  for (let index = 0; index < rawHeaders.length; index += 2) {
    if (rawHeaders[index]?.length === 4 && rawHeaders[index]?.toLowerCase() === 'host') hosts += 1;
  }
  if (hosts === 1 && hostForm.test(raw.headers.host ?? '')) return;
  if (hosts === 0 && raw.httpVersion === '1.0') return;
  const detail =
    hosts === 1
      ? 'The Host header is not a valid host.'
      : `The request has ${hosts === 0 ? 'no' : 'more than one'} Host header.`;
  throw new Problem('bad_request', detail, { headers: { connection: 'close' } });
}

/** A loose form of RFC 9110 section 7.2: excludes paths, lists and credentials. */
const hostForm = /^[^\s,/?#@\\]*$/;

/** RFC 9110 section 10.1.1. Node handles `100-continue`, and would answer others with an empty 417. */
function requireMetExpectation({ headers, raw }: FastifyRequest): void {
  const { expect } = headers;
  if (expect === undefined || raw.httpVersion === '1.0' || /(?:^|\W)100-continue(?:$|\W)/i.test(expect)) return;
  throw new Problem('expectation_failed', 'Latchkey supports only Expect: 100-continue. Leave the header out.', {
    headers: { connection: 'close' },
  });
}

/** RFC 9110 section 8.4: encoded bodies are not supported. */
function requirePlainBody(request: FastifyRequest): void {
  const { 'content-encoding': coding, 'transfer-encoding': transfer } = request.headers;
  if (coding === undefined && transfer === undefined) return;
  if (request.is404 || !hasBody(request)) return;
  if (isOnly('identity', coding) && isOnly('chunked', transfer)) return;
  throw new Problem(
    'unsupported_media_type',
    'Latchkey does not support this Content-Encoding or Transfer-Encoding. Send the body unencoded, whole or chunked.',
    {
      headers: { 'accept-encoding': 'identity' },
    },
  );
}

function isOnly(coding: string, header = ''): boolean {
  return header.split(',').every((part) => ['', coding].includes(part.trim().toLowerCase()));
}

const tokenParameters = new Set(['access_token', 'api_key', 'apikey', 'token', 'x-api-key']);

/** The length of the shortest URL that can contain a token. */
const tokenFormLength = 30;

/** RFC 6750 section 5.3: tokens do not belong in URLs, in any part and in any encoding. */
function refuseTokenInUrl({ raw: { url = '' } }: FastifyRequest, { mask }: SecretText): void {
  const pathLength = url.search(/[?#]/);
  if (pathLength < 0 && url.length < tokenFormLength) return;
  const parameter = pathLength < 0 ? undefined : tokenParameterIn(url.slice(pathLength));
  if (parameter === undefined && mask(url) === url) return;
  throw new Problem(
    'bad_request',
    `The URL contains a credential${parameter === undefined ? '' : ` (${parameter})`}. URLs end up in logs and ` +
      'histories: replace this credential, and send credentials in the Authorization header.',
  );
}

function tokenParameterIn(query: string): string | undefined {
  return query
    .split(/[?&;#]/)
    .map((part) => decodePercent(part.split('=', 1)[0] ?? '').toLowerCase())
    .find((name) => tokenParameters.has(name));
}

/** Postgres text cannot contain U+0000: in a path the id does not exist; in a query the input is invalid. */
function refuseNulInUrl(request: FastifyRequest): void {
  if (!/%00/.test(request.raw.url ?? '')) return;
  if (Object.values(request.params as Record<string, string>).some((value) => value.includes('\u0000'))) {
    throw new Problem('not_found', 'No id contains U+0000. Check the id in the path.');
  }
  for (const [name, value] of Object.entries(request.query as Record<string, unknown>)) {
    if (!JSON.stringify([name, value]).includes('\\u0000')) continue;
    throw validationProblem(`query.${name}`, 'must not contain U+0000');
  }
}
