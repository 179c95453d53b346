import formBody from '@fastify/formbody';
import type { FastifyPluginAsyncZod } from 'fastify-type-provider-zod';
import { z } from 'zod';
import { accessTokenOf } from '../http/guard.ts';
import { takeAnyText } from '../http/json-body.ts';
import { andThen } from '../lib/maybe-promise.ts';
import { verdictText, verdictView } from './verdict-view.ts';
import type { Verdict, Verifier } from './verifier.ts';
import { verifyRequest } from './verify-request.ts';

/** For backends: is this key good, and may it do this? */
export const verificationRoutes: FastifyPluginAsyncZod<{ verifier: Verifier }> = async (app, { verifier }) => {
  takeAnyText(app);
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
        summary: 'Is this key good, and may it do this?',
        description:
          '200 whatever was presented as the key: valid says whether it is good, and code says why not. ' +
          '`Cache-Control: no-cache` reads the record afresh.',
        body: verifyRequest,
        response: { 200: verdictView },
      },
    },
    (request, reply) => {
      const { key, permission, ip, cost } = request.body;
      const verdict = verifier.verify({
        key,
        wanted: { permission, ip },
        callerOrganizationId: accessTokenOf(request).actsIn,
        cost,
        fresh: asksForFresh(request.headers['cache-control']),
      });
      return andThen(verdict, (of) => {
        reply.type('application/json; charset=utf-8');
        // A string is sent as it is.
        return verdictText(of) as never;
      });
    },
  );
};

/** RFC 9111 section 5.2.1.4. */
export function asksForFresh(cacheControl: string | undefined): boolean {
  return cacheControl !== undefined && /(^|,)\s*no-cache\s*(,|$)/i.test(cacheControl);
}

/** Other fields are ignored: RFC 7662 section 2.1. */
const introspectRequest = z
  .object({
    token: z.string().meta({ description: 'What the client presented as its API key.' }),
    token_type_hint: z
      .unknown()
      .optional()
      .meta({ type: 'string', description: 'Ignored, as all fields not named here.' }),
    client_id: z.unknown().optional().meta({ type: 'string', description: 'Any; only client_secret counts.' }),
    client_secret: z
      .string()
      .optional()
      .meta({ description: "The verifier's access token, where it is not in the Authorization header." }),
  })
  .meta({ id: 'IntrospectionRequest', example: { token: 'lk_k_01k9s3v5wqe8n8x4r2m6t7yb0c_Vx0…' } });

const introspectView = z
  .object({
    active: z.boolean(),
    scope: z.string().optional().meta({ description: 'read, write, or both with a space between', example: 'read' }),
    client_id: z.string().optional().meta({ description: "The partner's id, else the organization's." }),
    sub: z.string().optional().meta({ description: "The key's id." }),
    exp: z.int().optional().meta({ description: 'Seconds since 1970.' }),
    iat: z.int().optional().meta({ description: 'Seconds since 1970.' }),
  })
  .meta({
    id: 'Introspection',
    description: 'By RFC 7662. Where active is false, nothing else is in it.',
    example: {
      active: true,
      scope: 'read',
      client_id: 'partner_01k9s3v5wqe8n8x4r2m6t7yb0c',
      sub: 'key_01k9s3v5wqe8n8x4r2m6t7yb0c',
      iat: 1795426200,
    },
  });

/** A key over its limit is as good as before: nothing is counted here. */
function isGood(verdict: Verdict | undefined): boolean {
  return verdict?.code === 'valid' || verdict?.code === 'rate_limited';
}

/** RFC 7662, for programs that know that and nothing of Latchkey. */
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
        summary: 'What an API key is, by RFC 7662',
        description:
          'The verifier authenticates by Bearer, by HTTP Basic (any client id, and its access token as the secret) or by ' +
          '`client_id` and `client_secret` in the form. Limits and addresses are not judged here: nothing is counted, a key ' +
          'over its limit is active, and a key with allowedIps never is, because no address can be given. Where they matter ' +
          'use verify.',
        consumes: ['application/x-www-form-urlencoded'],
        body: introspectRequest,
        response: { 200: introspectView },
      },
    },
    async (request) => {
      const callerOrganizationId = accessTokenOf(request).actsIn;
      const permissions = ['read', 'write'] as const;
      const verdicts = await Promise.all(
        permissions.map((permission) =>
          verifier.verify({
            key: request.body.token,
            wanted: { permission },
            callerOrganizationId,
            cost: 0,
            fresh: false,
          }),
        ),
      );
      const allowed = permissions.filter((_, index) => isGood(verdicts[index]));
      const key = verdicts[0]?.key;
      if (allowed.length === 0 || key == null) return { active: false };
      return {
        active: true,
        scope: allowed.join(' '),
        client_id: key.partner_id ?? key.organization_id,
        sub: key.id,
        ...(key.expires_at === null ? {} : { exp: Math.floor(key.expires_at.getTime() / 1000) }),
        iat: Math.floor(key.createdAtMs / 1000),
      };
    },
  );
};
