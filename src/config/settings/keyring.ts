import { z } from 'zod';
import { secretFile } from '../secret-files.ts';

/** The server secrets (docs/keyring.md). */
export const keyringSettings = {
  LATCHKEY_KEYRING: z.string().optional().meta({
    description: 'The server secrets, `id:base64,id:base64…`, 32 bytes each. The first one is primary.',
    example: 'k20260101:$(openssl rand -base64 32)',
  }),
  LATCHKEY_KEYRING_FILE: secretFile('LATCHKEY_KEYRING'),
  LOST_KEYRING_IDS: z
    .string()
    .transform((text) => text.split(',').map((id) => id.trim()))
    .optional()
    .meta({
      description:
        'Ids of keyring entries that are lost for good, separated by commas. Credentials under them are checked with argon2id at their next use, and their rows cannot be authenticated. Remove an id as soon as few credentials are left (docs/keyring.md).',
      example: 'k20250101',
    }),
};
