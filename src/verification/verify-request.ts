import { z } from 'zod';
import { accessSchema, keyScopesInput } from '../http/schemas.ts';

const maxCost = 1_000;

const question = z.strictObject({
  key: z.string().meta({
    description:
      'The API key exactly as the client sent it. Any text is accepted; text that is not a key gets the code `malformed`.',
  }),
  permission: accessSchema.meta({ description: 'What the client is about to do: read or write.' }),
  ip: z
    .string()
    .nullish()
    .meta({
      description:
        "The client's address. Port, brackets and zone are ignored. Text without an address, such as `unknown`, counts as no " +
        'address: a key with allowedIps is then rejected with `ip_not_allowed`; other keys are not affected.',
    }),
  scopes: keyScopesInput
    .optional()
    .meta({ description: 'All of them must be on the key.', example: ['invoices:read'] }),
  cost: z
    .int()
    .min(0)
    .max(maxCost)
    .default(1)
    .meta({ description: 'How much this use counts against the limits; 0 counts nothing.' }),
});

const exampleKey = 'lk_k_01k9s3v5wqe8n8x4r2m6t7yb0c_Vx0…';

export const verifyRequest = question.meta({
  id: 'VerifyRequest',
  example: { key: exampleKey, permission: 'read', ip: '203.0.113.7' },
});

export type VerifyRequest = z.output<typeof verifyRequest>;

/** The highest cost of reported uses together. */
const maxReportedCost = 1_000_000_000;

/** One entry of a batch. */
export const batchEntry = question
  .extend({
    cost: z
      .int()
      .min(0)
      .max(maxReportedCost)
      .default(1)
      .meta({
        description: `How much this counts against the limits; 0 counts nothing. Without \`uses\` at most ${maxCost}.`,
      }),
    uses: z.int().min(1).max(maxReportedCost).optional().meta({
      description:
        "Number of uses that the backend already allowed by a cached verdict. They are counted whatever the key's state is now, with `cost` for all of them.",
    }),
  })
  .refine(({ cost, uses }) => uses !== undefined || cost <= maxCost, {
    path: ['cost'],
    message: `must be at most ${maxCost}`,
  })
  .meta({ id: 'VerifyBatchEntry', example: { key: exampleKey, permission: 'read', ip: '203.0.113.7' } });

export const maxBatchEntries = 500;

export const batchRequest = z.strictObject({ entries: z.array(batchEntry).min(1).max(maxBatchEntries) }).meta({
  id: 'VerifyBatchRequest',
  example: { entries: [{ key: exampleKey, permission: 'read', ip: '203.0.113.7' }] },
});

/** A batch whose entries are not yet validated: each entry is validated separately. */
export const uncheckedBatchRequest = z.strictObject({ entries: z.array(z.unknown()).min(1).max(maxBatchEntries) });
