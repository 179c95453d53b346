import { z } from 'zod';
import { maskedImportedToken, maskedToken } from '../crypto/token.ts';
import { toRateLimit } from '../domain/rate-limit.ts';
import {
  actorView,
  idView,
  limitMeaning,
  metadataView,
  permissionSchema,
  rateLimitSchema,
  timestampView,
} from '../http/schemas.ts';
import { notAfter } from '../lib/past.ts';
import type { CreatedKey } from './commands.ts';
import { keyStatuses, keyTag, restorableUntil, statusOf } from './policy.ts';
import type { ShownKey } from './store.ts';

export const keyStatusSchema = z.enum(keyStatuses).meta({ id: 'KeyStatus' });

const fields = {
  id: idView('key'),
  origin: z.enum(['created', 'imported']).meta({
    id: 'KeyOrigin',
    description: '`imported`: the token was made elsewhere and does not have the form of a Latchkey token.',
  }),
  organizationId: idView('org'),
  partnerId: idView('partner').nullable().meta({ description: "Null for a key of the organization's default row." }),
  permission: permissionSchema,
  name: z.string().nullable().meta({ example: 'Billing export' }),
  maskedKey: z.string().meta({
    description: 'For an imported key, `…` and the last four characters if they are known.',
    example: 'lk_k_…Zq9B',
  }),
  status: keyStatusSchema,
  replacesKeyId: idView('key')
    .nullable()
    .meta({ description: 'The key that this one was rotated from.', example: null }),
  createdAt: timestampView,
  createdBy: actorView,
  expiresAt: timestampView.nullable(),
  suspendedAt: timestampView.nullable(),
  suspendedReason: z.string().nullable().meta({ example: null }),
  deletedAt: timestampView.nullable(),
  restorableUntil: timestampView.nullable(),
  lastUsedAt: timestampView.nullable(),
  rateLimit: rateLimitSchema.nullable().meta({ description: limitMeaning.key }),
  allowedIps: z
    .array(z.string())
    .meta({ description: 'If empty, all addresses are allowed.', example: ['203.0.113.0/24'] }),
  scopes: z.array(z.string()).meta({ example: ['invoices:read'] }),
  metadata: metadataView,
};

export const keyView = z.object(fields).meta({ id: 'Key' });

export const createdKeyView = z
  .object({
    ...fields,
    key: z.string().meta({
      description: 'The plaintext. Store it now: later only a reveal returns it, and Latchkey records each reveal.',
      example: 'lk_k_01k9s3v5wqe8n8x4r2m6t7yb0c_Vx0…',
    }),
  })
  .meta({ id: 'CreatedKey' });

/** The context that a key view depends on. */
export interface KeyViewContext {
  tokenPrefix: string;
  undoWindowSeconds: number;
  now: Date;
}

export function toKeyView(key: ShownKey, context: KeyViewContext): z.infer<typeof keyView> {
  return {
    id: key.id,
    origin: key.origin,
    organizationId: key.organization_id,
    partnerId: key.partner_id,
    permission: key.permission,
    name: key.name,
    maskedKey:
      key.origin === 'imported'
        ? maskedImportedToken(key.last_four)
        : maskedToken(context.tokenPrefix, 'k', key.last_four ?? ''),
    status: statusOf(key, context.now),
    replacesKeyId: key.replaces_key_id,
    createdAt: key.created_at.toISOString(),
    createdBy: key.created_by,
    expiresAt: key.expires_at?.toISOString() ?? null,
    suspendedAt: key.suspended_at?.toISOString() ?? null,
    suspendedReason: key.suspended_reason,
    deletedAt: key.deleted_at?.toISOString() ?? null,
    restorableUntil: restorableUntil(key, context.undoWindowSeconds)?.toISOString() ?? null,
    lastUsedAt: notAfter(key.last_used_at, context.now)?.toISOString() ?? null,
    rateLimit: toRateLimit(key),
    allowedIps: key.allowed_ips,
    scopes: key.scopes,
    metadata: key.metadata,
  };
}

/** With the plaintext, only for the reply that creates the key. */
export function toCreatedKeyView(created: CreatedKey, context: KeyViewContext): z.infer<typeof createdKeyView> {
  return { ...toKeyView({ ...created.key, last_used_at: null }, context), key: created.plaintext.reveal() };
}

/** The reply to a request that created a key. */
export function showCreatedKey(created: CreatedKey, context: KeyViewContext) {
  const { key } = created;
  return {
    view: toCreatedKeyView(created, context),
    location: `/v1/keys/${key.id}`,
    etag: keyTag(key),
    plaintextOf: [key.id],
  };
}
