import type { FastifyPluginAsync, FastifyReply, FastifyRequest } from 'fastify';
import { permissionFor } from '../../../src/domain/permissions.ts';
import { rateLimitFields } from '../../../src/domain/rate-limit.ts';
import { andThen, callBack, type MaybePromise } from '../../../src/lib/maybe-promise.ts';
import type { ClientEvent } from './client.ts';
import { type Denial, problemHeaders, problemOf } from './denial.ts';
import { type ApiKey, createGate, type GateOptions, isDenial } from './gate.ts';
import { type Access, requireScopes } from './verdict.ts';

export type { Denial } from './denial.ts';
export type { ApiKey } from './gate.ts';

declare module 'fastify' {
  interface FastifyRequest {
    /** The key of the request; null on routes with `permission: 'none'`. */
    apiKey: ApiKey | null;
  }

  interface FastifyContextConfig {
    /** The permission that this route needs. Default: `read` for GET, HEAD and OPTIONS, otherwise `write`. */
    permission?: Access | 'none';
    /** Scopes that must be on the key, all of them. */
    scopes?: readonly string[];
  }
}

export interface LatchkeyOptions extends GateOptions {
  /** How much a request counts. Default: 1. */
  cost?: (request: FastifyRequest) => number;
  /** Whether successful replies also have the key's limits in RateLimit and RateLimit-Policy. Default: false. */
  rateLimitFields?: boolean;
  /**
   * Replies to a rejected request in the application's own way: its return value is sent as the body. Status and
   * headers are set already and may be changed. Without a return value, the problem document is sent. It must not send
   * the reply itself. The request stays rejected.
   */
  onDenied?: (denial: Denial, request: FastifyRequest, reply: FastifyReply) => unknown;
}

const permissions: ReadonlySet<unknown> = new Set([undefined, 'read', 'write', 'none']);

const plugin: FastifyPluginAsync<LatchkeyOptions> = async (
  app,
  { cost, onDenied, onEvent, rateLimitFields: sendsLimits = false, ...options },
) => {
  const { log } = app;
  const gate = createGate({
    ...options,
    onEvent(event) {
      logEvent(event);
      onEvent?.(event);
    },
  });
  app.decorateRequest('apiKey', null);
  app.addHook('onRoute', ({ config, method, url }) => {
    const route = `${String(method)} ${url}: config`;
    if (!permissions.has(config?.permission)) throw new Error(`${route}.permission must be read, write or none`);
    try {
      requireScopes(config?.scopes);
    } catch (error) {
      throw new Error(`${route}.${(error as Error).message}`);
    }
    if (config?.permission === 'none' && config.scopes?.length) {
      throw new Error(`${route}.scopes needs a key, but config.permission is none`);
    }
  });
  // Without a promise if the key is cached, which saves time on each request.
  app.addHook('onRequest', (request, reply, done) => {
    // Read once, because Fastify copies the route's options at each access.
    const { permission = permissionFor(request.method), scopes } = request.routeOptions.config;
    if (permission === 'none') done();
    else callBack(() => authorize(request, reply, permission, scopes), done);
  });
  app.addHook('onClose', () => gate.close());

  function logEvent(event: ClientEvent): void {
    if (event.type === 'live') log.info('API keys are verified from memory.');
    else if (event.type === 'not_live') {
      log.warn(`Changes of API keys do not arrive (${event.reason}), so Latchkey is called for each request.`);
    } else if (event.type === 'trouble') {
      log.error(`API keys cannot be verified with Latchkey at ${options.url}: ${event.reason}`);
    }
  }

  function authorize(
    request: FastifyRequest,
    reply: FastifyReply,
    permission: Access,
    scopes: readonly string[] | undefined,
  ): MaybePromise<unknown> {
    const needs = { permission, scopes, ip: request.ip, cost: cost?.(request) ?? 1 };
    return andThen(gate.check(request.raw, needs), (result) => {
      if (isDenial(result)) return deny(result, request, reply);
      request.apiKey = result.apiKey;
      if (sendsLimits) reply.headers(rateLimitFields(result.rateLimit));
      return undefined;
    });
  }

  async function deny(denial: Denial, request: FastifyRequest, reply: FastifyReply): Promise<FastifyReply> {
    // The cause is logged once, not for each request.
    if (denial.reason !== undefined) request.log.debug({ reason: denial.reason }, 'An API key could not be verified.');
    reply.code(denial.status).headers(problemHeaders(denial));
    const body = await onDenied?.(denial, request, reply);
    if (reply.sent) return reply;
    if (body !== undefined) return reply.send(body);
    return reply.type('application/problem+json; charset=utf-8').send(problemOf(denial, request.id));
  }
};

/** Allows requests only with a valid key, on every route that is registered after it. */
export const latchkey: FastifyPluginAsync<LatchkeyOptions> = Object.assign(plugin, {
  // Documented by Fastify, for plugins that apply to the scope in which they are registered.
  [Symbol.for('skip-override')]: true,
  [Symbol.for('fastify.display-name')]: 'latchkey',
  [Symbol.for('plugin-meta')]: { name: 'latchkey', fastify: '5.x' },
});
