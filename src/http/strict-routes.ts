import type { FastifyRequest, RouteOptions } from 'fastify';
import fp from 'fastify-plugin';
import { z } from 'zod';
import { createSecretText, type SecretText } from '../crypto/secret-text.ts';
import { Problem, validationProblem } from '../domain/errors.ts';
import { decodePercent } from '../lib/decode-percent.ts';
import { hasBody } from './empty-body.ts';
import { commonHeaders } from './problem.ts';

const nothing = z.strictObject({});
const noBody = nothing.nullish();

/** A plugin scope with this decorator registers routes that are not ours, such as the static files of /docs: public. */
export const ungoverned = 'ungoverned';

declare module 'fastify' {
  interface FastifyRequest {
    /** The config of its route, read once: Fastify copies a route's options at each access. */
    routeConfig: FastifyContextConfig;
  }
  interface FastifyInstance {
    /** Every route that there is, as it was declared. */
    routeList: RouteOptions[];
    /** Finds and masks this installation's tokens. */
    secretText: SecretText;
  }
}

/**
 * Closed by default: a route that declares no access or no response does not start, and a route that declares no
 * query or body takes none. Also what every reply and every request has in common.
 */
export const strictRoutes = fp<{ tokenPrefix: string }>(
  async (app, { tokenPrefix }) => {
    app.decorate('routeList', []);
    app.decorate('secretText', createSecretText(tokenPrefix));
    // A request like any other: the hook below rejects it, with a problem.
    app.server.on('checkExpectation', (request, response) => app.server.emit('request', request, response));
    app.addHook('onRoute', function (route) {
      app.routeList.push(route);
      if (this.hasDecorator(ungoverned)) {
        route.config = { ...route.config, access: 'public' };
        return;
      }
      requireDeclarations(route);
      route.schema = { ...route.schema, querystring: route.schema?.querystring ?? nothing };
      if (takesBody(route)) route.schema.body ??= noBody;
    });
    app.decorateRequest('routeConfig');
    app.addHook('onRequest', (request, reply, done) => {
      const config = request.routeOptions.config;
      request.routeConfig = config;
      reply.headers(commonHeaders(request.id));
      requireHost(request);
      const { access } = config;
      // What a gateway passes on is its client's, and none of it but the credential is looked at.
      if (access === undefined || access === 'public' || access.role !== 'gateway') {
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

/** By the role and scope that it takes: whoever only asks has the role verifier or the scope read. */
function isChangingPost({ method, config }: RouteOptions): boolean {
  const access = config?.access;
  if (![method].flat().includes('POST') || access === undefined || access === 'public') return false;
  return (access.role === 'admin' || access.role === 'operator') && access.scope === 'write';
}

/** Whether a route takes no body but nothing, `null` or `{}`. */
export function isBodyless(route: RouteOptions): boolean {
  return route.schema?.body === noBody;
}

function takesBody(route: RouteOptions): boolean {
  return [route.method].flat().some((method) => method !== 'GET' && method !== 'HEAD');
}

/** RFC 9112 section 3.2: a request of HTTP/1.1 without Host, with two, or with one that is no host, is a 400. */
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
      ? 'The Host header is not a host.'
      : `The request has ${hosts === 0 ? 'no' : 'more than one'} Host header.`;
  throw new Problem('bad_request', detail, { headers: { connection: 'close' } });
}

/** What RFC 9110 section 7.2 takes, and no more than keeps it from being a path, a list or somebody's credentials. */
const hostForm = /^[^\s,/?#@\\]*$/;

/** RFC 9110 section 10.1.1. Node itself sees to `100-continue`, and would answer others with an empty 417. */
function requireMetExpectation({ headers, raw }: FastifyRequest): void {
  const { expect } = headers;
  if (expect === undefined || raw.httpVersion === '1.0' || /(?:^|\W)100-continue(?:$|\W)/i.test(expect)) return;
  throw new Problem('expectation_failed', 'The only Expect that can be met is 100-continue.', {
    headers: { connection: 'close' },
  });
}

/** RFC 9110 section 8.4: bodies are read as they come, so one in a coding that is not read must not be taken for it. */
function requirePlainBody(request: FastifyRequest): void {
  const { 'content-encoding': coding, 'transfer-encoding': transfer } = request.headers;
  if (coding === undefined && transfer === undefined) return;
  if (request.is404 || !hasBody(request)) return;
  if (isOnly('identity', coding) && isOnly('chunked', transfer)) return;
  throw new Problem('unsupported_media_type', 'Bodies are read without a Content-Encoding only, whole or chunked.', {
    headers: { 'accept-encoding': 'identity' },
  });
}

function isOnly(coding: string, header = ''): boolean {
  return header.split(',').every((part) => ['', coding].includes(part.trim().toLowerCase()));
}

const tokenParameters = new Set(['access_token', 'api_key', 'apikey', 'token', 'x-api-key']);

/** A shorter URL has no room for a token. */
const tokenFormLength = 30;

/** RFC 6750 section 5.3: tokens do not belong into URLs, in whichever part of one, and however often it is encoded. */
function refuseTokenInUrl({ raw: { url = '' } }: FastifyRequest, { mask }: SecretText): void {
  const pathLength = url.search(/[?#]/);
  if (pathLength < 0 && url.length < tokenFormLength) return;
  const parameter = pathLength < 0 ? undefined : tokenParameterIn(url.slice(pathLength));
  if (parameter === undefined && mask(url) === url) return;
  throw new Problem(
    'bad_request',
    `A credential in the URL${parameter === undefined ? '' : ` (${parameter})`} is refused: URLs end up in logs and ` +
      'histories. Send it in the Authorization header, and replace a real one that has been in a URL.',
  );
}

function tokenParameterIn(query: string): string | undefined {
  return query
    .split(/[?&;#]/)
    .map((part) => decodePercent(part.split('=', 1)[0] ?? '').toLowerCase())
    .find((name) => tokenParameters.has(name));
}

/** Postgres has no U+0000 in text. In a path nothing can be named so; in a query it is a mistake like in a body. */
function refuseNulInUrl(request: FastifyRequest): void {
  if (!/%00/.test(request.raw.url ?? '')) return;
  if (Object.values(request.params as Record<string, string>).some((value) => value.includes('\u0000'))) {
    throw new Problem('not_found', 'There is nothing with U+0000 in its id.');
  }
  for (const [name, value] of Object.entries(request.query as Record<string, unknown>)) {
    if (!JSON.stringify([name, value]).includes('\\u0000')) continue;
    throw validationProblem(`query.${name}`, 'must not contain U+0000');
  }
}
