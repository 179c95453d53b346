import { z } from 'zod';
import { actorView, idView, permissionSchema, timestampView } from '../http/schemas.ts';
import { type KeyViewContext, keyView, toKeyView } from '../keys/views.ts';
import type { CreatedClaim } from './commands.ts';
import { claimStatuses, statusOf } from './policy.ts';
import type { Redeemed } from './redeem.ts';
import type { Claim } from './store.ts';

export const claimStatusSchema = z.enum(claimStatuses).meta({ id: 'ClaimStatus' });

const fields = {
  id: idView('claim'),
  organizationId: idView('org'),
  partnerId: idView('partner').nullable(),
  keyId: idView('key'),
  status: claimStatusSchema,
  createdAt: timestampView,
  createdBy: actorView,
  expiresAt: timestampView,
  redeemedAt: timestampView.nullable(),
  redeemedFrom: z
    .string()
    .nullable()
    .meta({ description: 'The client address of the redemption.', example: '203.0.113.7' }),
};

export const claimView = z.object(fields).meta({ id: 'Claim' });

export const createdClaimView = z
  .object({
    ...fields,
    code: z.string().meta({
      description: 'Hand it to the person who is to have the key. It is returned only here.',
      example: 'lk_c_01k9s3v5wqe8n8x4r2m6t7yb0c_Vx0…',
    }),
    url: z.string().nullable().meta({
      description: 'The page where the code is redeemed by a click. Null if PUBLIC_URL is not set.',
      example: 'https://keys.example.com/claim#lk_c_01k9s3v5wqe8n8x4r2m6t7yb0c_Vx0…',
    }),
    key: keyView,
  })
  .meta({ id: 'CreatedClaim' });

export const redeemedClaimView = z
  .object({
    key: z.string().meta({ description: 'The plaintext.', example: 'lk_k_01k9s3v5wqe8n8x4r2m6t7yb0c_Vx0…' }),
    keyId: idView('key'),
    permission: permissionSchema,
    organizationName: z.string().meta({ example: 'Example Inc' }),
    partnerEmail: z
      .string()
      .nullable()
      .meta({ description: "Null for a key of the organization's default row.", example: 'team@partner.example' }),
    expiresAt: timestampView.nullable().meta({ description: 'When the key expires.', example: null }),
  })
  .meta({ id: 'RedeemedClaim' });

export function toClaimView(claim: Claim, now: Date): z.infer<typeof claimView> {
  const isRedeemed = claim.end_reason === 'redeemed';
  return {
    id: claim.id,
    organizationId: claim.organization_id,
    partnerId: claim.partner_id,
    keyId: claim.key_id,
    status: statusOf(claim, now),
    createdAt: claim.created_at.toISOString(),
    createdBy: claim.created_by,
    expiresAt: claim.expires_at.toISOString(),
    redeemedAt: isRedeemed ? (claim.ended_at?.toISOString() ?? null) : null,
    redeemedFrom: claim.redeemed_from,
  };
}

/** The reply to a request that created a claim. @param publicUrl without a slash at the end */
export function showCreatedClaim(
  { claim, key, code }: CreatedClaim,
  context: KeyViewContext,
  publicUrl: string | undefined,
) {
  const text = code.reveal();
  const view: z.infer<typeof createdClaimView> = {
    ...toClaimView(claim, context.now),
    code: text,
    url: publicUrl === undefined ? null : `${publicUrl}/claim#${text}`,
    key: toKeyView({ ...key, last_used_at: null }, context),
  };
  return { view, location: `/v1/claims/${claim.id}`, plaintextOf: [claim.id, key.id] };
}

export function toRedeemedView(redeemed: Redeemed): z.infer<typeof redeemedClaimView> {
  const { key, plaintext, organizationName, partnerEmail } = redeemed;
  return {
    key: plaintext.reveal(),
    keyId: key.id,
    permission: key.permission,
    organizationName,
    partnerEmail,
    expiresAt: key.expires_at?.toISOString() ?? null,
  };
}
