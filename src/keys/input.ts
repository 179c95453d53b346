import { z } from 'zod';
import {
  allowedIpsInput,
  idSchema,
  keyScopesInput,
  limitMeaning,
  metadataInput,
  nameInput,
  permissionSchema,
  rateLimitSchema,
  timestampInput,
} from '../http/schemas.ts';

// Bodies of requests that several features take.

/** The settings of a key in a request. */
export const keySettingsInput = {
  name: nameInput.nullish(),
  expiresAt: timestampInput.nullish(),
  rateLimit: rateLimitSchema.nullish().meta({ description: limitMeaning.key }),
  allowedIps: allowedIpsInput.optional(),
  scopes: keyScopesInput.optional().meta({
    description:
      'What the key may be used for, in your own words: Latchkey compares them and gives them no meaning. A change replaces the whole list.',
    example: ['invoices:read'],
  }),
  metadata: metadataInput.optional(),
};

export const newKey = z
  .strictObject({
    partnerId: idSchema('partner')
      .optional()
      .meta({ description: "If omitted, the key belongs to the organization's default row." }),
    permission: permissionSchema.optional().meta({ description: 'Required only for a partner with both permissions.' }),
    ...keySettingsInput,
  })
  .meta({ id: 'NewKey', example: { name: 'Billing export' } });

export const keyPatch = z
  .strictObject(keySettingsInput)
  .meta({ id: 'KeyPatch', example: { name: 'Billing export', metadata: { team: 'billing' } } });

const longestEndSeconds = 31_536_000;

export const rotateRequest = z
  .strictObject({
    expireOldAfterSeconds: z.int().min(0).max(longestEndSeconds).optional().meta({
      description:
        'Seconds until the old key expires. An earlier expiry stays. If omitted, the old key does not change.',
    }),
  })
  .meta({ id: 'RotateRequest', example: { expireOldAfterSeconds: 86_400 } });
