import { z } from 'zod';
import { accessSchema } from '../http/schemas.ts';

const greatestCost = 1_000;

const question = z.strictObject({
  key: z.string().meta({
    description:
      'What the client presented as its API key, exactly as it came: no text is wrong here, it is `malformed`.',
  }),
  permission: accessSchema.meta({ description: 'What the client is about to do: read or write.' }),
  ip: z
    .string()
    .nullish()
    .meta({
      description:
        "The client's address. A port, brackets and a zone are left out. What holds no address, such as `unknown`, counts as " +
        'unknown: a key with allowedIps is then `ip_not_allowed`, and all others do not depend on it.',
    }),
  cost: z
    .int()
    .min(0)
    .max(greatestCost)
    .default(1)
    .meta({ description: 'How much this counts; 0 asks without counting. Left out: 1.' }),
});

const exampleKey = 'lk_k_01k9s3v5wqe8n8x4r2m6t7yb0c_Vx0…';

export const verifyRequest = question.meta({
  id: 'VerifyRequest',
  example: { key: exampleKey, permission: 'read', ip: '203.0.113.7' },
});

export type VerifyRequest = z.output<typeof verifyRequest>;

/** What several uses that were let in already may count together. */
const greatestSum = 1_000_000_000;

/** One entry of a batch. */
export const batchEntry = question
  .extend({
    cost: z
      .int()
      .min(0)
      .max(greatestSum)
      .default(1)
      .meta({
        description: `How much this counts; 0 asks without counting. Left out: 1. Without uses at most ${greatestCost}.`,
      }),
    uses: z.int().min(1).max(greatestSum).optional().meta({
      description:
        'That so many uses were let in by an earlier answer: they are counted whatever the key is now, with cost for all of them.',
    }),
  })
  .refine(({ cost, uses }) => uses !== undefined || cost <= greatestCost, {
    path: ['cost'],
    message: `must be at most ${greatestCost}`,
  })
  .meta({ id: 'VerifyBatchEntry', example: { key: exampleKey, permission: 'read', ip: '203.0.113.7' } });

export const entriesInBatch = 500;

export const batchRequest = z.strictObject({ entries: z.array(batchEntry).min(1).max(entriesInBatch) }).meta({
  id: 'VerifyBatchRequest',
  example: { entries: [{ key: exampleKey, permission: 'read', ip: '203.0.113.7' }] },
});

/** The same but for its entries, each of which is looked at by itself. */
export const batchOfAnything = z.strictObject({ entries: z.array(z.unknown()).min(1).max(entriesInBatch) });
