import { z } from 'zod';
import { idView, metadataView, permissionSchema, timestampView } from '../http/schemas.ts';
import type { Count } from './limits.ts';
import { type VerdictCode, verdictCodes } from './policy.ts';

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

type VerdictView = z.infer<typeof verdictView>;

/** What a verdict says about a key. */
export type KeyFacts = Omit<VerdictView, 'valid' | 'code' | 'rateLimit'>;

/** Key facts as JSON without the braces: made once for each record, because it is the longest part of every verdict. */
export function factsText(facts: KeyFacts): string {
  const text = JSON.stringify(facts).slice(1, -1);
  // Copied, because a slice would keep the whole text in memory.
  return Buffer.from(text).toString();
}

const factsOfNone = factsText({
  keyId: null,
  organizationId: null,
  partnerId: null,
  partnerEmail: null,
  permission: null,
  name: null,
  metadata: null,
  expiresAt: null,
  dependsOnIp: null,
});

interface Conclusion {
  code: VerdictCode;
  key: { facts: string } | null;
  count: Count | null;
}

/** A verdict as JSON, in the shape of `verdictView`; a test holds the two together. */
export function verdictText({ code, key, count }: Conclusion): string {
  const limit =
    count === null
      ? 'null'
      : `{"policy":"${count.policy}","limit":${count.limit},"windowSeconds":${count.windowSeconds},` +
        `"remaining":${count.remaining},"resetSeconds":${count.resetSeconds}}`;
  return `{"valid":${code === 'valid'},"code":"${code}",${key?.facts ?? factsOfNone},"rateLimit":${limit}}`;
}
