import { isIP } from 'node:net';
import { z } from 'zod';
import { accessInput } from '../http/schemas.ts';

const longestKey = 1_000;
const longestIp = 45;
const greatestCost = 1_000;

const question = z.strictObject({
  key: z.string().max(longestKey).meta({ description: 'The API key, exactly as the client presented it.' }),
  permission: accessInput.meta({ description: 'What the client is about to do: read or write.' }),
  ip: z
    .string()
    .max(longestIp)
    .refine(isAddress, 'must be an IPv4 or IPv6 address')
    .optional()
    .meta({ description: "The client's address; a key with allowedIps is refused without it." }),
  cost: z
    .int()
    .min(0)
    .max(greatestCost)
    .default(1)
    .meta({ description: 'How much this counts; 0 asks without counting.' }),
});

const exampleKey = 'lk_k_01k9s3v5wqe8n8x4r2m6t7yb0c_Vx0…';

export const verifyRequest = question.meta({
  example: { key: exampleKey, permission: 'read', ip: '203.0.113.7' },
});

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
      .meta({ description: `How much this counts; 0 asks without counting. Without uses at most ${greatestCost}.` }),
    uses: z.int().min(1).max(greatestSum).optional().meta({
      description:
        'That so many uses were let in by an earlier answer: they are counted whatever the key is now, with cost for all of them.',
    }),
  })
  .refine(({ cost, uses }) => uses !== undefined || cost <= greatestCost, {
    path: ['cost'],
    message: `Too big: expected number to be <=${greatestCost}`,
  });

export const entriesInBatch = 500;

export const batchRequest = z
  .strictObject({ entries: z.array(batchEntry).min(1).max(entriesInBatch) })
  .meta({ example: { entries: [{ key: exampleKey, permission: 'read', ip: '203.0.113.7' }] } });

/** The same but for its entries, each of which is looked at by itself. */
export const batchOfAnything = z.strictObject({ entries: z.array(z.unknown()).min(1).max(entriesInBatch) });

export type VerifyRequest = z.output<typeof verifyRequest>;

function isAddress(value: string): boolean {
  return isIP(value) !== 0 && !value.includes('%');
}

/**
 * The same rules as the schema's, for the hot path: zod takes about ten times as long. Whatever this does not take goes
 * to the schema, which says why; a test holds the two together.
 * @returns the request with its defaults, or undefined
 */
export function readVerifyRequest(body: unknown): VerifyRequest | undefined {
  if (typeof body !== 'object' || body === null || Array.isArray(body)) return undefined;
  const { key, permission, ip, cost = 1, ...others } = body as Record<string, unknown>;
  for (const _ in others) return undefined;
  if (typeof key !== 'string' || key.length > longestKey) return undefined;
  if (permission !== 'read' && permission !== 'write') return undefined;
  if (typeof cost !== 'number' || !Number.isInteger(cost) || cost < 0 || cost > greatestCost) return undefined;
  if (ip === undefined) return { key, permission, cost };
  if (typeof ip !== 'string' || ip.length > longestIp || !isAddress(ip)) return undefined;
  return { key, permission, ip, cost };
}
