import { z } from 'zod';
import { problemCodes } from '../domain/errors.ts';
import { type Id, type IdKind, idSuffixPattern } from '../domain/ids.ts';
import { accesses, permissions, roles, tokenScopes } from '../domain/permissions.ts';
import { earliestMs, latestMs } from '../lib/durations.ts';
import { mustBe } from '../lib/input-messages.ts';
import { readAllowed } from '../lib/ip-address.ts';
import { findUnreadable } from '../lib/readable-text.ts';

// Schemas that several features share. An `id` becomes the name of the type in the OpenAPI document and in generated clients.

/** An id for examples. */
export function exampleId(kind: IdKind): string {
  return `${kind}_01k9s3v5wqe8n8x4r2m6t7yb0c`;
}

/** An id in a body or a query; a malformed one is rejected with 400. */
export function idSchema<Kind extends IdKind>(kind: Kind) {
  const error = mustBe(`an id of the form ${kind}_ and 26 characters`);
  return z
    .string({ error })
    .regex(new RegExp(`^${kind}_${idSuffixPattern}$`), { error })
    .transform((text) => text as Id<Kind>)
    .meta({ example: exampleId(kind) });
}

/** An id in a path. It is not validated: a malformed id is answered like an unknown one, with 404. */
export function idParam(description: string) {
  return z.string().meta({ description });
}

/** An id in a reply. */
export function idView(kind: IdKind) {
  return z.string().meta({ example: exampleId(kind) });
}

/** A timestamp in a reply: RFC 3339, UTC, milliseconds. */
export const timestampView = z.string().meta({ format: 'date-time', example: '2026-11-23T09:30:00.000Z' });

/** A timestamp in a request: RFC 3339 with any offset. Rejects what cannot be stored and returned unchanged. */
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

/** A whole number in a query string, in decimal digits. */
export function queryInteger(least: number, most: number) {
  const error = mustBe(`a whole number from ${least} to ${most}`);
  return z
    .string({ error })
    .regex(/^[0-9]{1,16}$/, { error })
    .transform(Number)
    .refine((value) => value >= least && value <= most, { error });
}

/** `true` or `false` in a query string. */
export const queryBoolean = z
  .enum(['true', 'false'], 'must be true or false')
  .transform((text) => text === 'true')
  .default(false);

/** The query members of every list. */
export const pageQuery = {
  limit: queryInteger(1, 200).default(50).meta({
    type: 'integer',
    minimum: 1,
    maximum: 200,
    default: 50,
    description: 'The maximum number of entries on a page.',
  }),
  cursor: z
    .string()
    .max(200)
    .optional()
    .meta({ description: '`nextCursor` of the previous page. Omit it to start at the newest entry.' }),
};

/** The members of a list reply, for replies with further members. */
export function pageFields<Item extends z.ZodType>(item: Item) {
  return {
    data: z.array(item),
    nextCursor: z.string().nullable().meta({ description: 'Null on the last page.', example: null }),
  };
}

/** A list reply. @param id its name in the OpenAPI document, such as `KeyPage` */
export function pageOf<Item extends z.ZodType>(id: string, item: Item) {
  return z.object(pageFields(item)).meta({ id });
}

/** Rejects characters that are invisible or reorder text. */
function requireReadable(value: string, context: z.RefinementCtx): void {
  const found = findUnreadable(value);
  if (found === undefined) return;
  context.addIssue({ code: 'custom', message: `must not contain ${found}, which is invisible or reorders text` });
}

/** Text in NFC, so that equal-looking texts are equal. */
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

/** A webhook URL. Its address is checked separately, when the host name is resolved. */
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

/** An id from another system. It is stored unchanged, not in NFC, because programs compare it. */
export const externalIdInput = z
  .string()
  .min(1)
  .max(255)
  .superRefine(requireReadable)
  .meta({ example: 'customer-4711' });

export const accessSchema = z
  .enum(accesses)
  .meta({ id: 'Access', description: 'The kind of access that a client requests or a key permits.' });

export const permissionSchema = z.enum(permissions).meta({
  id: 'Permission',
  description: "The access that a key permits. Only keys of the organization's own row can have `read_write`.",
});

export const roleSchema = z.enum(roles).meta({ id: 'Role' });

export const scopeSchema = z.enum(tokenScopes).meta({
  id: 'Scope',
  description:
    'What an access token permits: `read` and `write` requests, `reveal` for plaintexts of existing keys. None includes another.',
});

/** A non-empty list without duplicates. */
function setOf<Item extends z.ZodType>(item: Item, what: string, most: number) {
  return z
    .array(item)
    .min(1)
    .max(most)
    .refine((items) => new Set(items).size === items.length, `must not name a ${what} twice`)
    .meta({ example: ['read'], uniqueItems: true });
}

export const accessesInput = setOf(accessSchema, 'permission', accesses.length);
export const scopesInput = setOf(scopeSchema, 'scope', tokenScopes.length);

/** Descriptions of the limits of keys, partners and organizations. */
export const limitMeaning = {
  key:
    "The key's own limit; null: none. It applies in addition to the owner's limit. A key and its successors by rotation share " +
    'one count.',
  partner:
    "The limit that all keys of the partner share. Null: the organization's numbers apply, counted for this partner alone.",
  organization:
    "The limit that the organization's own keys share, including keys with their own limit. It is also the default of each " +
    'partner, counted for each partner alone.',
};

const windowMeaning =
  'The length of a window. A window begins with its first use, so up to twice the limit can pass within this time around the end of a window.';

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
      'The IPv4 and IPv6 addresses and networks from which the key may be used. An IPv4 address in IPv6 form (`::ffff:…`) is ' +
      'stored as IPv4. Empty: any address. A change replaces the whole list.',
    example: ['203.0.113.0/24'],
  });

/** RFC 6749 section 3.3. */
const scopeToken = /^[\x21\x23-\x5b\x5d-\x7e]+$/;

export const keyScopeInput = z
  .string()
  .min(1)
  .max(100)
  .regex(scopeToken, 'must be printable ASCII without space, double quote and backslash');

export const keyScopesInput = z
  .array(keyScopeInput)
  .max(50)
  .refine((scopes) => new Set(scopes).size === scopes.length, 'must not name a scope twice');

const metadataBytesAllowed = 16_384;

export const metadataInput = z
  .record(z.string(), z.unknown())
  .refine(
    (value) => Buffer.byteLength(JSON.stringify(value)) <= metadataBytesAllowed,
    `must be at most ${metadataBytesAllowed} bytes of JSON`,
  )
  .meta({
    description:
      'Any JSON object of at most 16 KiB. Verification returns it to the backend. A change replaces the whole object.',
    example: { team: 'billing' },
  });

export const metadataView = z.record(z.string(), z.unknown()).meta({ example: { team: 'billing' } });

/** The code of a problem. */
export const problemCodeSchema = z.enum(problemCodes).meta({ id: 'ProblemCode' });

const actorSnapshot = z.object({
  type: z.enum(['admin', 'operator', 'verifier', 'api_key', 'claim', 'system']).meta({ id: 'ActorType' }),
  id: z.string(),
  name: z.string(),
  email: z.string().nullable(),
  issuer: z.string().optional().meta({
    description: 'The issuer of the token, for a person from an identity provider. `id` is then `issuer#subject`.',
  }),
  subject: z.string().optional().meta({ description: "The person's id at the issuer." }),
});

const actorExample = { type: 'admin', id: exampleId('token'), name: 'Ada Admin', email: 'admin@example.com' };

export const actorSnapshotView = actorSnapshot.meta({
  id: 'ActorSnapshot',
  description: 'The actor as it was at the time of the action.',
  example: actorExample,
});

export const actorView = actorSnapshot
  .extend({
    createdByRoot: actorSnapshotView.optional().meta({
      description:
        "The first creator in the chain that led to the actor's access token. Absent if the bootstrap created the token, " +
        'and for people from an identity provider.',
    }),
    createdByIds: z.array(z.string()).optional().meta({
      description: 'The ids of all creators in this chain, from the first one to the creator of the token itself.',
    }),
  })
  .meta({
    id: 'Actor',
    description: 'The actor as it was at the time of the action, and the creators of its access token.',
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
      .meta({ description: "The trace id (W3C Trace Context): the caller's own if the request has one." }),
    errors: z
      .array(z.object({ path: z.string(), message: z.string() }).meta({ id: 'ProblemError', example: errorExample }))
      .optional(),
  })
  .meta({
    id: 'Problem',
    description:
      'A problem document (RFC 9457). `type` is a path of this service that explains the problem and its remedy.',
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
