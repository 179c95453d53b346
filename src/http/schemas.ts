import { z } from 'zod';
import { problemCodes } from '../domain/errors.ts';
import { type Id, type IdKind, idSuffixPattern } from '../domain/ids.ts';
import { accesses, permissions } from '../domain/permissions.ts';
import { mustBe } from '../lib/input-messages.ts';
import { readAllowed } from '../lib/ip-address.ts';
import { findUnreadable } from '../lib/readable-text.ts';

/**
 * Shapes that several features share. A description here is what the OpenAPI document says, and an `id` is the name that
 * generated clients give to the type.
 */

/** An id for examples; it belongs to nothing. */
export function exampleId(kind: IdKind): string {
  return `${kind}_01k9s3v5wqe8n8x4r2m6t7yb0c`;
}

/** An id in a body or a query, where a malformed one is a mistake of the caller's. */
export function idSchema<Kind extends IdKind>(kind: Kind) {
  const error = mustBe(`an id of the form ${kind}_ and 26 characters`);
  return z
    .string({ error })
    .regex(new RegExp(`^${kind}_${idSuffixPattern}$`), { error })
    .transform((text) => text as Id<Kind>)
    .meta({ example: exampleId(kind) });
}

/** An id in a path: a malformed one is answered like an unknown one, 404, so nothing is checked here. */
export function idParam(description: string) {
  return z.string().meta({ description });
}

/** An id in a reply. */
export function idView(kind: IdKind) {
  return z.string().meta({ example: exampleId(kind) });
}

/** RFC 3339, UTC, milliseconds. */
export const timestampView = z.string().meta({ format: 'date-time', example: '2026-11-23T09:30:00.000Z' });

/** What has a year of four digits, and is a time to Postgres. */
export const earliestMs = Date.parse('0001-01-01T00:00:00.000Z');
export const latestMs = Date.parse('9999-12-31T23:59:59.999Z');

/** RFC 3339 with any offset; what is finer than a millisecond, or has no year of four digits in UTC, would not come back as it was. */
export const timestampInput = z.iso
  .datetime({ offset: true, error: mustBe('a time by RFC 3339, such as 2026-11-23T09:30:00.000Z') })
  .refine((text) => !/\.\d{4,}/.test(text), 'must not be finer than a millisecond')
  .refine((text) => !Number.isNaN(Date.parse(text)), 'must be a time that exists')
  .transform((text) => new Date(text))
  .refine(
    (time) => time.getTime() >= earliestMs && time.getTime() <= latestMs,
    'must be within the years 0001 to 9999 of UTC',
  )
  .meta({ format: 'date-time', example: '2027-01-01T00:00:00.000Z' });

/** A whole number in a query string, written in decimal digits. */
export function queryInteger(least: number, most: number) {
  const error = mustBe(`a whole number from ${least} to ${most}`);
  return z
    .string({ error })
    .regex(/^[0-9]{1,10}$/, { error })
    .transform(Number)
    .refine((value) => value >= least && value <= most, { error });
}

export const queryBoolean = z
  .enum(['true', 'false'], 'must be true or false')
  .transform((text) => text === 'true')
  .default(false);

export const pageQuery = {
  limit: queryInteger(1, 200)
    .default(50)
    .meta({ type: 'integer', minimum: 1, maximum: 200, default: 50, description: 'How many entries a page has.' }),
  cursor: z
    .string()
    .max(200)
    .optional()
    .meta({ description: 'nextCursor of the page before; leave it out to start at the newest entry.' }),
};

/** The members of a list reply, for those that have more. */
export function pageFields<Item extends z.ZodType>(item: Item) {
  return {
    data: z.array(item),
    nextCursor: z.string().nullable().meta({ description: 'Null on the last page.', example: null }),
  };
}

/** @param id the name of the list in the OpenAPI document, such as `KeyPage` */
export function pageOf<Item extends z.ZodType>(id: string, item: Item) {
  return z.object(pageFields(item)).meta({ id });
}

/** Rejects what a reader would not see or be misled by. */
function requireReadable(value: string, context: z.RefinementCtx): void {
  const found = findUnreadable(value);
  if (found === undefined) return;
  context.addIssue({ code: 'custom', message: `must not contain ${found}, which is invisible or reorders text` });
}

/** NFC makes one of two texts that look alike. */
function readable(most: number) {
  return z
    .string()
    .normalize('NFC')
    .min(1)
    .max(most)
    .refine((value) => value.trim() === value, 'must not begin or end with white space');
}

/** Text of one line. */
export function text(most: number) {
  return readable(most).superRefine(requireReadable);
}

/** Text of several lines. */
export function prose(most: number) {
  return readable(most).superRefine((value, context) => requireReadable(value.replaceAll(/\r?\n/g, ' '), context));
}

/** Checked further where the endpoint is looked up. */
export const urlInput = z
  .string()
  .min(1)
  .max(2_048)
  .superRefine(requireReadable)
  .meta({ example: 'https://hooks.example.com/latchkey' });

export const nameInput = text(200).meta({ example: 'Billing export' });

export const emailInput = z
  .email({ pattern: z.regexes.html5Email, error: mustBe('an e-mail address') })
  .max(254)
  .superRefine(requireReadable)
  .meta({ example: 'team@partner.example' });

export const accessSchema = z
  .enum(accesses)
  .meta({ id: 'Access', description: 'What a client does with a key, or may do.' });

export const permissionSchema = z.enum(permissions).meta({
  id: 'Permission',
  description: "What a key permits. Only keys of the organization's own row have `read_write`.",
});

export const roleSchema = z.enum(['operator', 'admin', 'verifier']).meta({ id: 'Role' });

export const scopeSchema = z
  .enum(accesses)
  .meta({ id: 'Scope', description: 'What the holder of an access token may do.' });

/** A set: at least one of them, each once. */
function setOf<Item extends z.ZodType>(item: Item) {
  return z
    .array(item)
    .min(1)
    .max(2)
    .refine((items) => new Set(items).size === items.length, 'must not name a permission twice')
    .meta({ example: ['read'], uniqueItems: true });
}

export const accessesInput = setOf(accessSchema);
export const scopesInput = setOf(scopeSchema);

/** What the limits of keys, partners and organizations mean, in the same words wherever they are described. */
export const limitMeaning = {
  key:
    "A limit of the key alone. It narrows the owner's limit and does not replace it; null: none. Keys that follow each other by rotation " +
    'have one count.',
  partner:
    "All keys of the partner count against it together. Null: the organization's numbers, counted for this partner alone.",
  organization:
    "The organization's own keys count against it together. Each partner without a limit of its own has the same numbers, " +
    'counted for that partner alone. It holds for keys with a limit of their own, too.',
};

const windowMeaning =
  'A window begins with its first use. So up to twice the limit can pass within this time, around the end of a window.';

export const rateLimitSchema = z
  .strictObject({
    requests: z.int().min(1).max(1_000_000_000),
    windowSeconds: z.int().min(1).max(86_400).meta({ description: windowMeaning }),
  })
  .meta({ id: 'RateLimit', example: { requests: 1000, windowSeconds: 60 } });

export const allowedIpsInput = z
  .array(
    z
      .string()
      .max(49)
      .transform((entry, context) => {
        const read = readAllowed(entry);
        if (typeof read === 'string') return read;
        context.addIssue({ code: 'custom', message: read.problem });
        return z.NEVER;
      }),
  )
  .max(100)
  .meta({
    description:
      'IPv4 and IPv6 addresses and networks from which the key may be used. An IPv4 address that is written as an IPv6 one ' +
      '(`::ffff:…`) is kept as IPv4. Empty: from anywhere. A change replaces the whole list.',
    example: ['203.0.113.0/24'],
  });

const metadataBytesAllowed = 16_384;

export const metadataInput = z
  .record(z.string(), z.unknown())
  .refine(
    (value) => Buffer.byteLength(JSON.stringify(value)) <= metadataBytesAllowed,
    `must be at most ${metadataBytesAllowed} bytes of JSON`,
  )
  .meta({
    description:
      'Any JSON object of at most 16 KiB; verification hands it to the backend. A change replaces it as a whole: members that ' +
      'it does not name are gone.',
    example: { team: 'billing' },
  });

export const metadataView = z.record(z.string(), z.unknown()).meta({ example: { team: 'billing' } });

/** The codes of problems, wherever one is named. */
export const problemCodeSchema = z.enum(problemCodes).meta({ id: 'ProblemCode' });

const actorSnapshot = z.object({
  type: z.enum(['admin', 'operator', 'verifier', 'system']).meta({ id: 'ActorType' }),
  id: z.string(),
  name: z.string(),
  email: z.string().nullable(),
  issuer: z
    .string()
    .optional()
    .meta({ description: 'Who vouched for a person from an identity provider; then id is issuer#subject.' }),
  subject: z.string().optional().meta({ description: 'The id of the person at the issuer.' }),
});

const actorExample = { type: 'admin', id: exampleId('token'), name: 'Ada Admin', email: 'admin@example.com' };

export const actorSnapshotView = actorSnapshot.meta({
  id: 'ActorSnapshot',
  description: 'Who has acted, as it was then.',
  example: actorExample,
});

export const actorView = actorSnapshot
  .extend({
    createdByRoot: actorSnapshotView.optional().meta({
      description:
        "Who stands at the root of the people that created the actor's access token, one the other's. Absent where " +
        'the bootstrap created the token, and for people from an identity provider.',
    }),
    createdByIds: z
      .array(z.string())
      .optional()
      .meta({ description: "All of these people's ids, from the root to who created the token itself." }),
  })
  .meta({
    id: 'Actor',
    description: 'Who acted, as it was then, and who stands behind its access token.',
    example: actorExample,
  });

const errorExample = { path: 'body.name', message: 'must not begin or end with white space' };

export const problemView = z
  .looseObject({
    type: z.string().meta({ format: 'uri-reference' }),
    title: z.string(),
    status: z.int(),
    detail: z.string(),
    code: problemCodeSchema,
    requestId: z.string(),
    traceId: z
      .string()
      .meta({ description: "The trace of W3C Trace Context: the caller's own, where it has sent one." }),
    errors: z
      .array(z.object({ path: z.string(), message: z.string() }).meta({ id: 'ProblemError', example: errorExample }))
      .optional(),
  })
  .meta({
    id: 'Problem',
    description:
      'A problem document by RFC 9457. Its type is a path of this service that explains it and says what to do.',
    example: {
      type: '/problems/not_found',
      title: 'Not found',
      status: 404,
      detail: 'There is no such key in this organization.',
      code: 'not_found',
      requestId: '019abf6e-7c2e-7f4e-9a61-0f0f6d5b9c11',
      traceId: '019abf6e7c2e7f4e9a610f0f6d5b9c11',
    },
  });
