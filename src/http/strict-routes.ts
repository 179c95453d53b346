import type { FastifyRequest, RouteOptions } from 'fastify';
import fp from 'fastify-plugin';
import { z } from 'zod';
import { Problem } from '../core/errors.ts';
import { commonHeaders } from './problem.ts';

const nothing = z.strictObject({});
const noBody = nothing.nullish();

/** A plugin scope with this decorator registers routes that are not ours, such as the static files of /docs: public. */
export const ungoverned = 'ungoverned';

declare module 'fastify' {
  interface FastifyInstance {
    /** Every route that there is, as it was declared. */
    routeList: RouteOptions[];
  }
}

/**
 * Closed by default: a route that declares no access or no response does not start, and a route that declares no
 * query or body takes none. Also what every reply and every request has in common.
 */
export const strictRoutes = fp<{ tokenPrefix: string }>(
  async (app, { tokenPrefix }) => {
    app.decorate('routeList', []);
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
    app.addHook('onRequest', (request, reply, done) => {
      reply.headers(commonHeaders(request.id));
      requireHost(request);
      const { access } = request.routeOptions.config;
      // What a gateway passes on is its client's, and none of it but the credential is looked at.
      if (access === undefined || access === 'public' || access.role !== 'gateway') {
        refuseTokenInUrl(request, tokenPrefix);
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

/** RFC 9112 section 3.2: a request of HTTP/1.1 without Host is a 400. */
function requireHost(request: FastifyRequest): void {
  if (request.headers.host !== undefined || request.raw.httpVersion === '1.0') return;
  throw new Problem('bad_request', 'The request has no Host header.', { headers: { connection: 'close' } });
}

const tokenParameters = new Set(['access_token', 'api_key', 'apikey', 'token', 'x-api-key']);

/** RFC 6750 section 5.3: tokens do not belong into URLs. */
function refuseTokenInUrl(request: FastifyRequest, prefix: string): void {
  const query = request.raw.url?.split('?', 2)[1];
  if (query === undefined) return;
  for (const [name, value] of new URLSearchParams(query)) {
    if (tokenParameters.has(name.toLowerCase()) || new RegExp(`${prefix}_[kavo]_[0-9a-z]{26}_`).test(value)) {
      throw new Problem(
        'bad_request',
        `A credential in the query string (${name}) is refused: URLs end up in logs and histories. ` +
          'Send it in the Authorization header, and replace a real one that has been in a URL.',
      );
    }
  }
}

/** Postgres has no U+0000 in text. In a path nothing can be named so; in a query it is a mistake like in a body. */
function refuseNulInUrl(request: FastifyRequest): void {
  if (!/%00/.test(request.raw.url ?? '')) return;
  if (Object.values(request.params as Record<string, string>).some((value) => value.includes('\u0000'))) {
    throw new Problem('not_found', 'There is nothing with U+0000 in its id.');
  }
  for (const [name, value] of Object.entries(request.query as Record<string, unknown>)) {
    if (!JSON.stringify([name, value]).includes('\\u0000')) continue;
    const error = { path: `query.${name}`, message: 'must not contain U+0000' };
    throw new Problem('validation_failed', `${error.path}: ${error.message}`, { errors: [error] });
  }
}
