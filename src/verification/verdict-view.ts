import { z } from 'zod';
import { idView, metadataView, permissionSchema, timestampView } from '../http/schemas.ts';
import type { Count } from './limits.ts';
import { type VerdictCode, verdictCodes } from './policy.ts';

/** The reply of a verification. */
export const verdictView = z
  .object({
    valid: z.boolean(),
    code: z.enum(verdictCodes).meta({ id: 'VerdictCode' }),
    keyId: idView('key').nullable(),
    organizationId: idView('org').nullable(),
    partnerId: idView('partner').nullable(),
    partnerExternalId: z.string().nullable().meta({
      description: "The partner's `externalId`.",
      example: 'customer-4711',
    }),
    partnerEmail: z.string().nullable().meta({ example: 'team@partner.example' }),
    permission: permissionSchema.nullable(),
    scopes: z
      .array(z.string())
      .nullable()
      .meta({ example: ['invoices:read'] }),
    name: z.string().nullable().meta({ example: 'Billing export' }),
    metadata: metadataView.nullable(),
    expiresAt: timestampView.nullable(),
    dependsOnIp: z.boolean().nullable().meta({
      description: 'Whether the key has allowedIps, so that the verdict holds only for this address.',
      example: false,
    }),
    rateLimit: z
      .object({
        policy: z
          .enum(['owner', 'key'])
          .meta({ id: 'LimitPolicy' })
          .meta({ description: "`owner`: the limit that all keys of the owner share. `key`: the key's own limit." }),
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
          'The limit that rejected the use, otherwise the limit with the least remaining. Null if something else rejected ' +
          'the key.',
      }),
  })
  .meta({
    id: 'Verdict',
    description: 'If `code` is `malformed` or `not_found`, all members that describe the key are null.',
  });

type VerdictView = z.infer<typeof verdictView>;

/** The members of a verdict that describe the key. */
export type KeyFacts = Omit<VerdictView, 'valid' | 'code' | 'rateLimit'>;

/** Key facts as JSON without the braces. Made once per record, because they are the longest part of every verdict. */
export function keyFactsJson(facts: KeyFacts): string {
  const text = JSON.stringify(facts).slice(1, -1);
  // A copy, because a slice would keep the whole text in memory.
  return Buffer.from(text).toString();
}

const emptyKeyFacts = keyFactsJson({
  keyId: null,
  organizationId: null,
  partnerId: null,
  partnerExternalId: null,
  partnerEmail: null,
  permission: null,
  scopes: null,
  name: null,
  metadata: null,
  expiresAt: null,
  dependsOnIp: null,
});

interface VerdictContent {
  code: VerdictCode;
  key: { facts: string } | null;
  count: Count | null;
}

/** A verdict as JSON, in the shape of `verdictView`; a test compares the two. */
export function verdictJson({ code, key, count }: VerdictContent): string {
  const limit =
    count === null
      ? 'null'
      : `{"policy":"${count.policy}","limit":${count.limit},"windowSeconds":${count.windowSeconds},` +
        `"remaining":${count.remaining},"resetSeconds":${count.resetSeconds}}`;
  return `{"valid":${code === 'valid'},"code":"${code}",${key?.facts ?? emptyKeyFacts},"rateLimit":${limit}}`;
}
