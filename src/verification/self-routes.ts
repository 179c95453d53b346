import type { FastifyReply } from 'fastify';
import type { FastifyPluginAsyncZod } from 'fastify-type-provider-zod';
import { z } from 'zod';
import { unauthorized } from '../credentials/presented.ts';
import { Problem } from '../domain/errors.ts';
import type { KeyId } from '../domain/ids.ts';
import type { ApiKeyPrincipal, CallerPrincipal } from '../domain/principal.ts';
import { rateLimitFields } from '../domain/rate-limit.ts';
import { idView, permissionSchema, rateLimitSchema, roleSchema, timestampView } from '../http/schemas.ts';
import type { ApiKeyRecord } from './api-key-record.ts';
import type { KeyCache } from './key-cache.ts';
import { bucketsOf, type UseLimits } from './limits.ts';
import type { UsageRecorder } from './usage-recorder.ts';

const selfView = z
  .object({
    kind: z
      .enum(['access_token', 'oidc', 'api_key'])
      .meta({ id: 'CredentialKind', description: '`oidc`: a token from an identity provider.' }),
    id: z.string().meta({ example: 'key_01k9s3v5wqe8n8x4r2m6t7yb0c' }),
    organizationId: idView('org')
      .nullable()
      .meta({ description: 'Null: the token belongs to the whole installation.' }),
    partnerId: idView('partner').nullable(),
    name: z.string().nullable().meta({ example: 'Billing export' }),
    email: z.string().nullable().meta({ example: null }),
    role: roleSchema.nullable().meta({ description: 'Null for an API key.' }),
    scopes: z.array(z.string()).meta({
      description: '`read`, `write` and `reveal` of an access token; the scopes of an API key.',
      example: ['invoices:read'],
    }),
    permission: permissionSchema.nullable().meta({ description: 'Null for an access token.' }),
    expiresAt: timestampView.nullable(),
    rateLimit: rateLimitSchema.nullable().meta({
      description: "The API key's own limit, otherwise its owner's. Null for an access token.",
    }),
  })
  .meta({ id: 'Credential' });

interface SelfRoutesOptions {
  apiKeys: Pick<KeyCache<KeyId, ApiKeyRecord>, 'get'>;
  limits: UseLimits;
  usage: UsageRecorder;
}

/** A credential describes itself to its holder. */
export const selfRoutes: FastifyPluginAsyncZod<SelfRoutesOptions> = async (app, options) => {
  app.get(
    '/self',
    {
      config: { access: { role: 'any' } },
      schema: {
        operationId: 'getSelf',
        tags: ['Verification'],
        summary: 'Describe the presented credential',
        description:
          "The limit for these requests is the key's own limit, otherwise its owner's. They are counted separately from other uses.",
        response: { 200: selfView },
      },
    },
    async (request, reply) => {
      const { principal } = request;
      if (principal === null) throw new Error('the guard has set no principal');
      if (principal.kind !== 'api_key') return tokenView(principal);
      const record = await options.apiKeys.get(principal.id);
      if (record === undefined) throw unauthorized('unauthorized', 'The API key no longer exists.', 'invalid_token');
      await countSelfRequest(options, record, reply);
      return keyView(principal, record);
    },
  );
};

/** The key's own limit, otherwise its owner's. */
function limitOf(record: ApiKeyRecord) {
  const [owner, own = owner] = bucketsOf(record);
  return { requests: own.requests, windowSeconds: own.windowSeconds };
}

/**
 * Counts in a separate bucket: this route does not check addresses, so a stolen key must not use up the owner's limit.
 * @throws Problem `rate_limited`
 */
async function countSelfRequest(
  { limits, usage }: SelfRoutesOptions,
  record: ApiKeyRecord,
  reply: FastifyReply,
): Promise<void> {
  const count = await limits.count([{ id: `self:${record.id}`, ...limitOf(record) }], 1);
  reply.headers(rateLimitFields({ ...count, policy: 'self' }));
  usage.add(record, count.isExceeded ? 'rateLimited' : 'allowed');
  if (!count.isExceeded) return;
  throw new Problem(
    'rate_limited',
    `This key may describe itself ${count.limit} times in ${count.windowSeconds} seconds. Wait and try again.`,
    {
      headers: { 'retry-after': String(count.resetSeconds) },
    },
  );
}

function keyView(principal: ApiKeyPrincipal, record: ApiKeyRecord): z.infer<typeof selfView> {
  const { kind, id, organizationId, partnerId, name, permission } = principal;
  const expiresAt = principal.expiresAt?.toISOString() ?? null;
  const tokensOnly = { email: null, role: null };
  return {
    kind,
    id,
    organizationId,
    partnerId,
    name,
    permission,
    scopes: [...record.scopes],
    expiresAt,
    rateLimit: limitOf(record),
    ...tokensOnly,
  };
}

function tokenView(principal: CallerPrincipal): z.infer<typeof selfView> {
  const { kind, id, organizationId, name, email, role, scopes } = principal;
  const expiresAt = principal.expiresAt?.toISOString() ?? null;
  const keysOnly = { partnerId: null, permission: null, rateLimit: null };
  return { kind, id, organizationId, name, email, role, scopes, expiresAt, ...keysOnly };
}
