import { METHODS } from 'node:http';
import type { FastifyContextConfig, FastifyReply, FastifyRequest } from 'fastify';
import type { FastifyPluginAsyncZod } from 'fastify-type-provider-zod';
import { z } from 'zod';
import { readCredential } from '../credentials/presented.ts';
import { Problem } from '../domain/errors.ts';
import { permissionFor } from '../domain/permissions.ts';
import { limitSentence, rateLimitFields } from '../domain/rate-limit.ts';
import { accessTokenOf, gatewayHeader } from '../http/guard.ts';
import { andThen, type MaybePromise } from '../lib/maybe-promise.ts';
import type { Verdict, Verifier } from './verifier.ts';

const description = `For gateways that authorize a request before they forward it: nginx \`auth_request\`, Caddy and Traefik forward auth.
Send the client's API key in Authorization or X-API-Key, the gateway's own verifier token in X-Latchkey-Token, and the
client's method in X-Forwarded-Method or X-Original-Method. GET, HEAD and OPTIONS need read; all other methods need write.
This endpoint accepts every method and ignores body and content type.

| status | means |
| --- | --- |
| 200 | The request may pass. Headers identify the key and its owner. X-Latchkey-Partner-External-Id is percent-encoded UTF-8. |
| 401 | The key is not valid. |
| 403 | The key does not permit this method or this address, or lacks a scope. |
| 429 | The key is over its limit, or too many wrong gateway tokens came from this address (ADDRESS_LIMIT). |
| 503 | The gateway's own token is not valid, or Latchkey cannot decide now. |

Envoy calls \`/v1/authorize/…\` with the client's own method and path; Latchkey reads only the method there.`;

/** Authorizes the requests of a gateway's clients. */
export const authorizeRoutes: FastifyPluginAsyncZod<{ verifier: Verifier }> = async (app, { verifier }) => {
  // Validation is off: the reply depends only on the key, whatever the client sent.
  app.setValidatorCompiler(() => (value: unknown) => ({ value }));
  app.removeAllContentTypeParsers();
  app.addContentTypeParser('*', (_request, _body, done) => done(null));
  app.addHook('onRequest', ({ raw }, _reply, done) => {
    // Fastify would reject a malformed content type, and a QUERY without one.
    raw.headers['content-type'] = 'application/octet-stream';
    done();
  });
  for (const method of METHODS) {
    // CONNECT never reaches a router: it opens a tunnel.
    if (method !== 'CONNECT' && !app.supportedMethods.includes(method)) app.addHttpMethod(method, { hasBody: true });
  }
  const authorizeBy = (methodOf: (request: FastifyRequest) => string | undefined) => {
    return (request: FastifyRequest, reply: FastifyReply): MaybePromise<void> => {
      const method = methodOf(request);
      if (method === undefined) throw unknownMethod();
      const verdict = verifier.verify({
        key: clientKey(request) ?? '',
        requested: { permission: permissionFor(method), ip: request.facts.ip, scopes: requiredScopes(request) },
        callerOrganizationId: accessTokenOf(request).organizationId,
        cost: 1,
        fresh: false,
      });
      return andThen(verdict, (of) => {
        if (of.code !== 'valid') throw rejection(of, wantsLimitedAs403(request));
        reply.headers(identityOf(of)).send();
      });
    };
  };
  const schema = {
    operationId: 'authorizeRequest',
    tags: ['Verification'],
    summary: "Authorize a gateway's request",
    description,
    querystring: z.object({
      limitedStatus: z
        .enum(['403'])
        .meta({
          id: 'LimitedStatus',
          description: 'For gateways that understand only 401 and 403: a key over its limit is rejected with 403.',
        })
        .optional(),
      keyHeader: z
        .string()
        .optional()
        .meta({
          description:
            'The name of the header that carries the key, such as `x-api-key`. Latchkey then ignores all other headers, ' +
            'including Authorization.',
        }),
      scope: z
        .array(z.string())
        .optional()
        .meta({ description: 'A scope that must be on the key. Repeat it for several: all of them must be.' }),
    }),
    response: {
      200: z.null().meta({ description: 'The request may pass. The headers identify the key and its owner.' }),
    },
  };
  const config: FastifyContextConfig = { access: { role: 'gateway' } };
  const others = app.supportedMethods.filter((method) => method !== 'GET' && method !== 'HEAD');
  app.get('/authorize', { config, schema }, authorizeBy(forwardedMethod));
  const hidden = { config, schema: { hide: true, response: schema.response } };
  app.route({ method: others, url: '/authorize', ...hidden, handler: authorizeBy(forwardedMethod) });
  app.route({
    method: ['GET', ...others],
    url: '/authorize/*',
    ...hidden,
    handler: authorizeBy((request) => request.method),
  });
};

/** The client's method as the gateway reports it; undefined if two headers differ, because the client then sent one of them. */
function forwardedMethod({ headers }: FastifyRequest): string | undefined {
  const methods = [headers['x-forwarded-method'], headers['x-original-method']].filter((value) => value !== undefined);
  const [first] = methods;
  // Node joins a repeated header with commas, which the pattern rejects.
  const isUnambiguous =
    typeof first === 'string' && /^[A-Za-z-]+$/.test(first) && methods.every((value) => value === first);
  return isUnambiguous ? first : undefined;
}

/** The client's credential; undefined if there is none, if two differ, or if the scheme is another one. */
function clientKey({ raw, query }: FastifyRequest): string | undefined {
  const { keyHeader } = query as { keyHeader?: unknown };
  const name = keyHeader === undefined ? undefined : headerName(keyHeader);
  const { authorization } = raw.headers;
  try {
    if (name === undefined) return readCredential(raw);
    if (name === 'authorization') return readCredential({ headers: { authorization }, rawHeaders: raw.rawHeaders });
    // Node joins a repeated header with commas, which no key contains.
    return raw.headers[name]?.toString();
  } catch (error) {
    if (error instanceof Problem) return undefined;
    throw error;
  }
}

/**
 * RFC 9110 section 5.1, in lower case.
 * @throws Problem `unavailable`, not 4xx: the mistake is in the gateway's configuration, not in the client's request
 */
function headerName(keyHeader: unknown): string {
  if (typeof keyHeader === 'string' && /^[\w!#$%&'*+.^`|~-]{1,100}$/.test(keyHeader)) {
    const name = keyHeader.toLowerCase();
    if (name !== gatewayHeader) return name;
  }
  throw new Problem(
    'unavailable',
    "keyHeader in the gateway's query does not name a header that can carry a key. Correct it.",
    {
      cause: new Error(`keyHeader is ${JSON.stringify(keyHeader).slice(0, 200)}`),
    },
  );
}

function unknownMethod(): Problem {
  const detail =
    "The client's method is missing or ambiguous. The gateway must send it once, in X-Forwarded-Method or X-Original-Method.";
  return new Problem('forbidden', detail);
}

/** The scopes in the gateway's query. */
function requiredScopes({ query }: FastifyRequest): string[] | undefined {
  const { scope } = query as { scope?: string | string[] };
  return scope === undefined ? undefined : [scope].flat();
}

function wantsLimitedAs403(request: FastifyRequest): boolean {
  return (request.query as { limitedStatus?: unknown }).limitedStatus === '403';
}

/** Every invalid key gets the same reply, so that it does not reveal which ids exist. */
const rejectedKeyHeaders = {
  'www-authenticate': 'Bearer realm="api", error="invalid_token", error_description="The API key is not accepted."',
};

function rejection({ code, count }: Verdict, limitedAs403: boolean): Problem {
  const headers = { 'x-latchkey-code': code };
  switch (code) {
    case 'ip_not_allowed':
      return new Problem('forbidden', 'The API key is not accepted from this address.', { headers });
    case 'insufficient_permission':
      return new Problem('forbidden', 'The API key does not permit this method.', { headers });
    case 'insufficient_scope':
      return new Problem('forbidden', 'The API key lacks a scope that this request needs.', { headers });
    case 'rate_limited': {
      const retryAfter = String(count?.resetSeconds ?? 1);
      const which = count === null ? '' : ` ${limitSentence(count)}`;
      return new Problem(limitedAs403 ? 'forbidden' : 'rate_limited', `The API key has been used too often.${which}`, {
        headers: { ...headers, ...rateLimitFields(count), 'retry-after': retryAfter },
      });
    }
    default:
      return new Problem('unauthorized', 'The API key is not accepted.', { headers: rejectedKeyHeaders });
  }
}

/** Every header is always set: some gateways forward the client's own header if one is missing here. */
function identityOf({ key, count }: Verdict): Record<string, string> {
  if (key === null) throw new Error('a valid verdict has its key');
  return {
    'x-latchkey-key-id': key.id,
    'x-latchkey-organization-id': key.organization_id,
    'x-latchkey-partner-id': key.partner_id ?? '',
    'x-latchkey-partner-external-id': encodeURIComponent(key.partner_external_id ?? ''),
    'x-latchkey-permission': key.permission,
    ...rateLimitFields(count),
  };
}
