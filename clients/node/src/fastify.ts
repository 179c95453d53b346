import type { IncomingMessage } from 'node:http';
import type { FastifyReply, FastifyRequest } from 'fastify';
import fp from 'fastify-plugin';
import { andThen, callBack, type MaybePromise, withCatch } from '../../../src/lib/maybe-promise.ts';
import { readCredential } from '../../../src/lib/read-credential.ts';
import { type ClientOptions, createLatchkeyClient } from './client.ts';
import { type Denial, denialOf, denialOfError, keyInUrl, noKey, rateLimitFields, sendProblem } from './denial.ts';
import { type Access, LatchkeyUnavailable, type Permission, permissionFor, type Verdict } from './verdict.ts';

export type { Denial } from './denial.ts';

/** The key that allowed a request. It is frozen, because requests with the same key share its metadata. */
export interface ApiKey {
  /** `key_…` */
  readonly id: string;
  readonly organizationId: string;
  /** Null for the organization's own keys. */
  readonly partnerId: string | null;
  readonly partnerEmail: string | null;
  readonly permission: Permission;
  readonly name: string | null;
  /** The metadata that the organization stores with the key. */
  readonly metadata: Readonly<Record<string, unknown>>;
  readonly expiresAt: string | null;
}

declare module 'fastify' {
  interface FastifyRequest {
    /** The key of the request; null on routes with `permission: 'none'`. */
    apiKey: ApiKey | null;
  }

  interface FastifyContextConfig {
    /** The permission that this route needs. Default: `read` for GET, HEAD and OPTIONS, otherwise `write`. */
    permission?: Access | 'none';
  }
}

export interface LatchkeyOptions extends Omit<ClientOptions, 'onTurn' | 'onTrouble'> {
  /** The header with the key, instead of `Authorization: Bearer …` and `X-API-Key`; for example `x-acme-key`. */
  header?: string;
  /** How much a request counts. Default: 1. */
  cost?: (request: FastifyRequest) => number;
  /** Whether successful replies also have the key's limits in RateLimit and RateLimit-Policy. Default: false. */
  rateLimitFields?: boolean;
  /**
   * Replies to a rejected request in the application's own way: its return value is sent as the body. Status and
   * headers are set already and may be changed. Without a return value, the problem document is sent. The request stays
   * rejected.
   */
  onDenied?: (denial: Denial, request: FastifyRequest, reply: FastifyReply) => unknown;
}

const permissions: ReadonlySet<unknown> = new Set([undefined, 'read', 'write', 'none']);

/** Allows requests only with a valid key, on every route that is registered after it. */
export const latchkey = fp<LatchkeyOptions>(
  async (app, { header, cost, onDenied, rateLimitFields: sendsLimits = false, ...options }) => {
    const { log } = app;
    const client = createLatchkeyClient({
      ...options,
      onTurn: (isLive, cause) => {
        if (isLive) log.info('API keys are verified from memory.');
        else
          log.warn(`Changes of API keys do not arrive (${reasonOf(cause)}), so Latchkey is called for each request.`);
      },
      // One line that says what to change, without the stack of this library.
      onTrouble: (error) => log.error(`API keys cannot be verified with Latchkey at ${options.url}: ${error.message}`),
    });
    const keyOf = header === undefined ? readCredential : readerOf(header.toLowerCase());
    app.decorateRequest('apiKey', null);
    app.addHook('onRoute', ({ config, method, url }) => {
      if (permissions.has(config?.permission)) return;
      throw new Error(`${String(method)} ${url}: config.permission must be read, write or none`);
    });
    // Without a promise if the key is cached, which saves time on each request.
    app.addHook('onRequest', (request, reply, done) => {
      const permission = request.routeOptions.config.permission ?? permissionFor(request.method);
      if (permission === 'none') done();
      else {
        const check = () =>
          andThen(authorize(request, reply, permission), (denial) => denial && deny(denial, request, reply));
        callBack(check, done);
      }
    });
    app.addHook('onClose', () => client.close());

    /** @returns why the request is rejected */
    function authorize(
      request: FastifyRequest,
      reply: FastifyReply,
      permission: Access,
    ): MaybePromise<Denial | undefined> {
      const ask = (): MaybePromise<Denial | undefined> => {
        if (hasKeyInQuery(request.raw.url ?? '')) return keyInUrl;
        const key = keyOf(request.raw);
        if (key === undefined) return noKey(header);
        return andThen(client.verify({ key, permission, ip: request.ip, cost: cost?.(request) ?? 1 }), (verdict) => {
          if (!verdict.valid) return denialOf(verdict);
          request.apiKey = apiKeyIn(verdict);
          if (sendsLimits) reply.headers(rateLimitFields(verdict.rateLimit));
          return undefined;
        });
      };
      return withCatch(ask, (error) => {
        // The cause is logged once, not for each request.
        if (error instanceof LatchkeyUnavailable) {
          request.log.debug({ reason: error.message }, 'Latchkey could not verify an API key.');
        }
        return denialOfError(error);
      });
    }

    async function deny(denial: Denial, request: FastifyRequest, reply: FastifyReply): Promise<FastifyReply> {
      reply.code(denial.status).headers({ 'cache-control': 'no-store', ...denial.headers });
      const body = await onDenied?.(denial, request, reply);
      if (!reply.sent) {
        if (body === undefined) sendProblem(request, reply, denial);
        else reply.send(body);
      }
      return reply;
    }
  },
  { name: 'latchkey', fastify: '5.x' },
);

function reasonOf(cause: unknown): string {
  return cause instanceof Error ? cause.message : String(cause);
}

/** @throws LatchkeyUnavailable for a valid verdict without the key's id */
function apiKeyIn(verdict: Verdict): ApiKey {
  const { keyId, organizationId, partnerId, partnerEmail, permission, name, metadata, expiresAt } = verdict;
  if (keyId === null || organizationId === null || permission === null || metadata === null) {
    throw new LatchkeyUnavailable('Latchkey returned a valid verdict without the id of the key.');
  }
  return Object.freeze({
    id: keyId,
    organizationId,
    partnerId,
    partnerEmail,
    permission,
    name,
    metadata,
    expiresAt,
  });
}

/** Node joins a repeated header with a comma, which no key contains. */
function readerOf(header: string): (request: Pick<IncomingMessage, 'headers'>) => string | undefined {
  return ({ headers }) => {
    const value = headers[header];
    return Array.isArray(value) ? value.join(', ') : value;
  };
}

/** Recognized by the form of the value, because a parameter may have any name. */
const keyForm = /_k_[0-7][0-9a-hjkmnp-tv-z]{25}_[0-9A-Za-z]{40}/;

/** RFC 6750 section 5.3: keys do not belong into URLs. */
function hasKeyInQuery(url: string): boolean {
  const queryAt = url.indexOf('?');
  if (queryAt < 0) return false;
  const query = url.slice(queryAt + 1);
  return keyForm.test(query.includes('%') ? String(new URLSearchParams(query)) : query);
}
