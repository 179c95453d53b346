import formBody from '@fastify/formbody';
import type { FastifyPluginAsyncZod } from 'fastify-type-provider-zod';
import { z } from 'zod';
import { accessTokenOf } from '../http/guard.ts';
import { allowTokensInBody } from '../http/json-body.ts';
import { removeFromFacts } from '../http/request-facts.ts';
import { andThen } from '../lib/maybe-promise.ts';
import { verdictJson, verdictView } from './verdict-view.ts';
import type { Verdict, Verifier } from './verifier.ts';
import { verifyRequest } from './verify-request.ts';

/** Verifies API keys for backends. */
export const verificationRoutes: FastifyPluginAsyncZod<{ verifier: Verifier }> = async (app, { verifier }) => {
  allowTokensInBody(app);
  app.post(
    '/verify',
    {
      config: {
        access: { role: 'verifier', scope: 'read' },
        problems: ['overloaded', 'cost_exceeds_limit'],
      },
      schema: {
        operationId: 'verifyKey',
        tags: ['Verification'],
        summary: 'Verify an API key',
        description:
          'The status is 200 for an invalid key too: read `valid`; `code` gives the reason. ' +
          '`Cache-Control: no-cache` reads the record from the database.',
        body: verifyRequest,
        response: { 200: verdictView },
      },
    },
    (request, reply) => {
      const { key, permission, ip, scopes, cost } = request.body;
      removeFromFacts(key, request, reply);
      const verdict = verifier.verify({
        key,
        requested: { permission, ip, scopes },
        callerOrganizationId: accessTokenOf(request).actsIn,
        cost,
        fresh: requestsNoCache(request.headers['cache-control']),
      });
      return andThen(verdict, (of) => {
        reply.type('application/json; charset=utf-8');
        return verdictJson(of) as never;
      });
    },
  );
};

/** RFC 9111 section 5.2.1.4. */
export function requestsNoCache(cacheControl: string | undefined): boolean {
  return cacheControl !== undefined && /(^|,)\s*no-cache\s*(,|$)/i.test(cacheControl);
}

/** RFC 7662 section 2.1: other fields are ignored. */
const introspectRequest = z
  .object({
    token: z.string().meta({ description: 'The API key as the client sent it.' }),
    token_type_hint: z
      .unknown()
      .optional()
      .meta({ type: 'string', description: 'Ignored, like all fields that are not named here.' }),
    client_id: z
      .unknown()
      .optional()
      .meta({ type: 'string', description: 'Any text; Latchkey checks only client_secret.' }),
    client_secret: z
      .string()
      .optional()
      .meta({ description: "The verifier's access token, unless the Authorization header carries it." }),
  })
  .meta({ id: 'IntrospectionRequest', example: { token: 'lk_k_01k9s3v5wqe8n8x4r2m6t7yb0c_Vx0…' } });

const introspectView = z
  .object({
    active: z.boolean(),
    scope: z.string().optional().meta({
      description: '`read`, `write` or both, then the scopes of the key, separated by spaces.',
      example: 'read',
    }),
    client_id: z
      .string()
      .optional()
      .meta({ description: "The partner's id; for keys of the organization's own row, the organization's id." }),
    sub: z.string().optional().meta({ description: "The key's id." }),
    partnerExternalId: z
      .string()
      .optional()
      .meta({ description: "The partner's `externalId`; absent if there is none." }),
    exp: z.int().optional().meta({ description: 'Seconds since 1970.' }),
    iat: z.int().optional().meta({ description: 'Seconds since 1970.' }),
  })
  .meta({
    id: 'Introspection',
    description: 'The reply of RFC 7662. If `active` is false, it has no other member.',
    example: {
      active: true,
      scope: 'read',
      client_id: 'partner_01k9s3v5wqe8n8x4r2m6t7yb0c',
      sub: 'key_01k9s3v5wqe8n8x4r2m6t7yb0c',
      iat: 1795426200,
    },
  });

/** Introspection counts nothing, so a key over its limit is active. */
function isActive(verdict: Verdict | undefined): boolean {
  return verdict?.code === 'valid' || verdict?.code === 'rate_limited';
}

/** OAuth token introspection (RFC 7662), for programs without a Latchkey client. */
export const introspectionRoutes: FastifyPluginAsyncZod<{ verifier: Verifier }> = async (app, { verifier }) => {
  app.removeAllContentTypeParsers();
  await app.register(formBody);
  app.post(
    '/introspect',
    {
      config: { access: { role: 'verifier', scope: 'read', clientSecret: true }, problems: ['overloaded'] },
      schema: {
        operationId: 'introspectKey',
        tags: ['Verification'],
        summary: 'Introspect an API key (RFC 7662)',
        description:
          'The verifier authenticates by Bearer, by HTTP Basic (any client id; the access token is the secret) or by ' +
          '`client_id` and `client_secret` in the form. Introspection counts nothing, so a key over its limit is active. A ' +
          'key with allowedIps is never active, because the request carries no client address. If limits or addresses ' +
          'matter, use verify.',
        consumes: ['application/x-www-form-urlencoded'],
        body: introspectRequest,
        response: { 200: introspectView },
      },
    },
    async (request, reply) => {
      removeFromFacts(request.body.token, request, reply);
      const callerOrganizationId = accessTokenOf(request).actsIn;
      const permissions = ['read', 'write'] as const;
      const verdicts = await Promise.all(
        permissions.map((permission) =>
          verifier.verify({
            key: request.body.token,
            requested: { permission },
            callerOrganizationId,
            cost: 0,
            fresh: false,
          }),
        ),
      );
      const allowed = permissions.filter((_, index) => isActive(verdicts[index]));
      const key = verdicts[0]?.key;
      if (allowed.length === 0 || key == null) return { active: false };
      return {
        active: true,
        scope: [...allowed, ...key.scopes].join(' '),
        client_id: key.partner_id ?? key.organization_id,
        sub: key.id,
        ...(key.partner_external_id === null ? {} : { partnerExternalId: key.partner_external_id }),
        ...(key.expires_at === null ? {} : { exp: Math.floor(key.expires_at.getTime() / 1000) }),
        iat: Math.floor(key.createdAtMs / 1000),
      };
    },
  );
};
