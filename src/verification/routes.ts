import { isIP } from 'node:net';
import type { FastifyPluginAsyncZod } from 'fastify-type-provider-zod';
import { z } from 'zod';
import { accessTokenOf } from '../http/guard.ts';
import { accessInput, idView, metadataView, timestampView } from '../http/schemas.ts';
import { verdictCodes } from './policy.ts';
import type { Verdict, Verifier } from './verifier.ts';

const verifyRequest = z
  .strictObject({
    key: z.string().max(1_000).meta({ description: 'The API key, exactly as the client presented it.' }),
    permission: accessInput.meta({ description: 'What the client is about to do: read or write.' }),
    ip: z
      .string()
      .max(45)
      .refine((value) => isIP(value) !== 0 && !value.includes('%'), 'must be an IPv4 or IPv6 address')
      .optional()
      .meta({ description: "The client's address; a key with allowedIps is refused without it." }),
    cost: z.int().min(0).max(1_000).default(1).meta({ description: 'How much this counts; 0 asks without counting.' }),
  })
  .meta({
    example: { key: 'lk_k_01k9s3v5wqe8n8x4r2m6t7yb0c_Vx0…', permission: 'read', ip: '203.0.113.7' },
  });

const verdictView = z
  .object({
    valid: z.boolean(),
    code: z.enum(verdictCodes),
    keyId: idView('key').nullable(),
    organizationId: idView('org').nullable(),
    partnerId: idView('partner').nullable(),
    partnerEmail: z.string().nullable().meta({ example: 'team@partner.example' }),
    permission: z.enum(['read', 'write', 'read_write']).nullable(),
    name: z.string().nullable().meta({ example: 'Billing export' }),
    metadata: metadataView.nullable(),
    expiresAt: timestampView.nullable(),
    rateLimit: z
      .object({ limit: z.int(), remaining: z.int(), resetSeconds: z.int() })
      .nullable()
      .meta({ description: 'Null where nothing was counted.', example: null }),
  })
  .meta({
    id: 'Verdict',
    description: 'Nothing is told about the key where code is malformed or not_found.',
  });

/** For backends: is this key good, and may it do this? */
export const verificationRoutes: FastifyPluginAsyncZod<{ verifier: Verifier }> = async (app, { verifier }) => {
  app.post(
    '/verify',
    {
      config: { access: { role: 'verifier', scope: 'read' }, problems: ['overloaded'] },
      schema: {
        operationId: 'verifyKey',
        tags: ['Verification'],
        summary: 'Is this key good, and may it do this?',
        description: 'Always 200: valid says whether, and code says why not.',
        body: verifyRequest,
        response: { 200: verdictView },
      },
    },
    async (request) => {
      const { key, permission, ip } = request.body;
      return toVerdictView(await verifier.verify(key, { permission, ip }, accessTokenOf(request).actsIn));
    },
  );
};

function toVerdictView({ code, key }: Verdict): z.infer<typeof verdictView> {
  return {
    valid: code === 'valid',
    code,
    keyId: key?.id ?? null,
    organizationId: key?.organization_id ?? null,
    partnerId: key?.partner_id ?? null,
    partnerEmail: key?.partner_email ?? null,
    permission: key?.permission ?? null,
    name: key?.name ?? null,
    metadata: key?.metadata ?? null,
    expiresAt: key?.expires_at?.toISOString() ?? null,
    rateLimit: null,
  };
}
