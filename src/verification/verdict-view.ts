import { z } from 'zod';
import { idView, metadataView, permissionSchema, timestampView } from '../http/schemas.ts';
import { factsOf } from './api-key-record.ts';
import { verdictCodes } from './policy.ts';
import type { Verdict } from './verifier.ts';

export const verdictView = z
  .object({
    valid: z.boolean(),
    code: z.enum(verdictCodes).meta({ id: 'VerdictCode' }),
    keyId: idView('key').nullable(),
    organizationId: idView('org').nullable(),
    partnerId: idView('partner').nullable(),
    partnerEmail: z.string().nullable().meta({ example: 'team@partner.example' }),
    permission: permissionSchema.nullable(),
    name: z.string().nullable().meta({ example: 'Billing export' }),
    metadata: metadataView.nullable(),
    expiresAt: timestampView.nullable(),
    dependsOnIp: z.boolean().nullable().meta({
      description: 'Whether the key has allowedIps, so that this holds for no other address.',
      example: false,
    }),
    rateLimit: z
      .object({
        policy: z
          .enum(['owner', 'key'])
          .meta({ id: 'LimitPolicy' })
          .meta({ description: "owner: the limit that all keys of the owner share. key: one of the key's own." }),
        limit: z.int(),
        windowSeconds: z.int(),
        remaining: z.int(),
        resetSeconds: z.int(),
      })
      .meta({
        id: 'LimitCount',
        example: { policy: 'owner', limit: 1000, windowSeconds: 60, remaining: 999, resetSeconds: 60 },
      })
      .nullable()
      .meta({
        description:
          'The limit that rejected the use, else the one of the two with the least left. Null where something else rejected ' +
          'the key.',
      }),
  })
  .meta({
    id: 'Verdict',
    description: 'Nothing is told about the key where code is malformed or not_found.',
  });

const factsOfNone = factsOf(null);

/** A verdict as JSON, in the shape of `verdictView`; a test holds the two together. */
export function verdictText({ code, key, count }: Verdict): string {
  const limits =
    count === null
      ? 'null'
      : `{"policy":"${count.policy}","limit":${count.limit},"windowSeconds":${count.windowSeconds},` +
        `"remaining":${count.remaining},"resetSeconds":${count.resetSeconds}}`;
  return `{"valid":${code === 'valid'},"code":"${code}",${key?.facts ?? factsOfNone},"rateLimit":${limits}}`;
}
