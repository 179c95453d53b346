import { METHODS } from 'node:http';
import type { FastifyContextConfig, FastifyReply, FastifyRequest } from 'fastify';
import type { FastifyPluginAsyncZod } from 'fastify-type-provider-zod';
import { z } from 'zod';
import { readCredential } from '../credentials/presented.ts';
import { Problem } from '../domain/errors.ts';
import type { Access } from '../domain/permissions.ts';
import { limitSentence } from '../domain/rate-limit.ts';
import { accessTokenOf, gatewayHeader } from '../http/guard.ts';
import { rateLimitFields } from '../http/rate-limit.ts';
import { andThen, type MaybePromise } from '../lib/maybe-promise.ts';
import type { Verdict, Verifier } from './verifier.ts';

const description = `For gateways that ask before they pass a request on: nginx \`auth_request\`, Caddy and Traefik forward auth.
The API key is in Authorization or X-API-Key as the client sent it, the gateway's own verifier token in X-Latchkey-Token,
and the client's method in X-Forwarded-Method or X-Original-Method (GET, HEAD and OPTIONS need read, all others write).
Every method is taken; body and content type are not looked at.

200 tells who the client is in headers; 401 where the key is not good, 403 where it may not do this, 429 where it is used
too much, 503 where the gateway's own token is not good or nothing can be said. Tokens of gateways that are not good count
against ADDRESS_LIMIT, and beyond it are 429. Envoy asks \`/v1/authorize/…\` with the client's own method and path; there
only the method is looked at.`;

/** For gateways, as a question that every one of them can ask. */
export const authorizeRoutes: FastifyPluginAsyncZod<{ verifier: Verifier }> = async (app, { verifier }) => {
  // Nothing in the request is refused for its form: whatever the client sent, the answer is about its key.
  app.setValidatorCompiler(() => (value: unknown) => ({ value }));
  app.removeAllContentTypeParsers();
  app.addContentTypeParser('*', (_request, _body, done) => done(null));
  app.addHook('onRequest', ({ raw }, _reply, done) => {
    // The client's own would be refused where it is not well formed, and QUERY where there is none.
    raw.headers['content-type'] = 'application/octet-stream';
    done();
  });
  for (const method of METHODS) {
    // WebDAV's and all the others. CONNECT never reaches a router: it asks for a tunnel.
    if (method !== 'CONNECT' && !app.supportedMethods.includes(method)) app.addHttpMethod(method, { hasBody: true });
  }
  const answer = (methodOf: (request: FastifyRequest) => string | undefined) => {
    return (request: FastifyRequest, reply: FastifyReply): MaybePromise<void> => {
      const method = methodOf(request);
      if (method === undefined) throw methodUnknown();
      const verdict = verifier.verify({
        key: clientKey(request) ?? '',
        wanted: { permission: permissionFor(method), ip: request.facts.ip },
        callerOrganizationId: accessTokenOf(request).organizationId,
        cost: 1,
        fresh: false,
      });
      return andThen(verdict, (of) => {
        if (of.code !== 'valid') throw refusal(of, wantsLimitedAs403(request));
        reply.headers(identityOf(of)).send();
      });
    };
  };
  const schema = {
    operationId: 'authorizeRequest',
    tags: ['Verification'],
    summary: 'May this request pass? For gateways',
    description,
    querystring: z.object({
      limitedStatus: z
        .enum(['403'])
        .meta({
          id: 'LimitedStatus',
          description: 'For gateways that know only 401 and 403: those over their limit are answered with 403.',
        })
        .optional(),
      keyHeader: z
        .string()
        .optional()
        .meta({
          description:
            'The name of the one header in which the key is, such as `x-api-key`. All others, Authorization too, are then the ' +
            "application's own and not looked at.",
        }),
    }),
    response: { 200: z.null().meta({ description: 'It may pass. The headers tell whose key it is.' }) },
  };
  const config: FastifyContextConfig = { access: { role: 'gateway' } };
  const others = app.supportedMethods.filter((method) => method !== 'GET' && method !== 'HEAD');
  app.get('/authorize', { config, schema }, answer(toldMethod));
  const hidden = { config, schema: { hide: true, response: schema.response } };
  app.route({ method: others, url: '/authorize', ...hidden, handler: answer(toldMethod) });
  app.route({
    method: ['GET', ...others],
    url: '/authorize/*',
    ...hidden,
    handler: answer((request) => request.method),
  });
};

/**
 * The client's method as the gateway reports it. Never the request's own, which would be that of the gateway's question;
 * and not where two headers differ, because then the client has sent one of them.
 */
function toldMethod({ headers }: FastifyRequest): string | undefined {
  const told = [headers['x-forwarded-method'], headers['x-original-method']].filter((value) => value !== undefined);
  const [first] = told;
  // Node joins a repeated header with commas, and those are in no method.
  const isOne = typeof first === 'string' && /^[A-Za-z-]+$/.test(first) && told.every((value) => value === first);
  return isOne ? first : undefined;
}

function permissionFor(method: string): Access {
  return method === 'GET' || method === 'HEAD' || method === 'OPTIONS' ? 'read' : 'write';
}

/** The one credential that the client sent; undefined for none, for two that differ, and for another scheme. */
function clientKey({ raw, query }: FastifyRequest): string | undefined {
  const { keyHeader } = query as { keyHeader?: unknown };
  const name = keyHeader === undefined ? undefined : headerName(keyHeader);
  const { authorization } = raw.headers;
  try {
    if (name === undefined) return readCredential(raw);
    if (name === 'authorization') return readCredential({ headers: { authorization }, rawHeaders: raw.rawHeaders });
    // Node joins a repeated header with commas, and those are in no key.
    return raw.headers[name]?.toString();
  } catch (error) {
    if (error instanceof Problem) return undefined;
    throw error;
  }
}

/** By RFC 9110 section 5.1, in lower case. A mistake of who configured the gateway, so 503, and the log says which. */
function headerName(keyHeader: unknown): string {
  if (typeof keyHeader === 'string' && /^[\w!#$%&'*+.^`|~-]{1,100}$/.test(keyHeader)) {
    const name = keyHeader.toLowerCase();
    if (name !== gatewayHeader) return name;
  }
  throw new Problem('unavailable', 'keyHeader in the query of the gateway names no header in which a key can be.', {
    cause: new Error(`keyHeader is ${JSON.stringify(keyHeader).slice(0, 200)}`),
  });
}

function methodUnknown(): Problem {
  const detail = "The gateway did not tell the client's method, once, in X-Forwarded-Method or X-Original-Method.";
  return new Problem('forbidden', detail);
}

function wantsLimitedAs403(request: FastifyRequest): boolean {
  return (request.query as { limitedStatus?: unknown }).limitedStatus === '403';
}

/** One answer for everything that is wrong with the key itself, so that it does not show which ids exist. */
const refusedChallenge = {
  'www-authenticate': 'Bearer realm="api", error="invalid_token", error_description="The API key is not accepted."',
};

function refusal({ code, count }: Verdict, limitedAs403: boolean): Problem {
  const headers = { 'x-latchkey-code': code };
  switch (code) {
    case 'ip_not_allowed':
      return new Problem('forbidden', 'The API key is not accepted from this address.', { headers });
    case 'insufficient_permission':
      return new Problem('forbidden', 'The API key does not permit this method.', { headers });
    case 'rate_limited': {
      const fields = count === null ? {} : rateLimitFields(count);
      const retryAfter = String(count?.resetSeconds ?? 1);
      const which = count === null ? '' : ` ${limitSentence(count)}`;
      return new Problem(limitedAs403 ? 'forbidden' : 'rate_limited', `The API key has been used too often.${which}`, {
        headers: { ...headers, ...fields, 'retry-after': retryAfter },
      });
    }
    default:
      return new Problem('unauthorized', 'The API key is not accepted.', { headers: refusedChallenge });
  }
}

/** Each is always there: through some gateways a missing one would let the client's own header pass. */
function identityOf({ key, count }: Verdict): Record<string, string> {
  if (key === null) throw new Error('a valid verdict has its key');
  return {
    'x-latchkey-key-id': key.id,
    'x-latchkey-organization-id': key.organization_id,
    'x-latchkey-partner-id': key.partner_id ?? '',
    'x-latchkey-permission': key.permission,
    ...(count === null ? {} : rateLimitFields(count)),
  };
}
