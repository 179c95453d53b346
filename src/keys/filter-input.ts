import { z } from 'zod';
import { idSuffixPattern, type PartnerId } from '../domain/ids.ts';
import { keyScopeInput, pageQuery, permissionSchema, queryBoolean, timestampInput } from '../http/schemas.ts';
import type { KeyFilter } from './search.ts';
import { keyStatusSchema } from './views.ts';

/** Filters of keys in a request: parameters of the list, and members of a bulk request. */

const filters = {
  partnerId: z
    .string()
    .regex(new RegExp(`^(default|partner_${idSuffixPattern})$`), 'must be default or a partner id')
    .transform((text) => text as 'default' | PartnerId)
    .optional(),
  permission: permissionSchema.optional(),
  status: keyStatusSchema.optional(),
  name: z
    .string()
    .normalize('NFC')
    .min(1)
    .max(200)
    .optional()
    .meta({ description: 'The beginning of the name, without regard to case.' }),
  lastFour: z
    .string()
    .regex(/^[\x20-\x7e]{4}$/, 'must be 4 printable ASCII characters')
    .optional()
    .meta({ description: 'The last four characters of the key.' }),
  expiresBefore: timestampInput.optional().meta({
    description: 'Keys that expire or expired before this time.',
  }),
  lastUsedBefore: timestampInput.optional().meta({
    description: 'Keys whose last allowed use was before this time. Keys that were never used count by their creation.',
  }),
  createdBefore: timestampInput.optional(),
  scope: keyScopeInput.optional().meta({ description: 'Keys that have this scope.' }),
};

const metadataPrefix = 'metadata.';
const longestText = 1_000;
const mostMembers = 10;

const metadataMeaning =
  `Members named \`metadata.<member>\`, at most ${mostMembers}: keys whose metadata has this member with this text. The text is that of a ` +
  'string, or the JSON text of a number, `true` or `false`. A dot in the name belongs to it: members of members cannot be searched.';

const pastMaxLifetimeMeaning =
  'Only live keys without an expiry, or with one later than maxKeyLifetimeSeconds from now: they outlive any key created now.';

const includeDeletedMeaning = 'Also list deleted keys that can be restored.';

/** The title becomes the name of the parameter in the OpenAPI document. */
const metadataTexts = { title: 'metadata', type: 'string', maxLength: longestText, description: metadataMeaning };

/** Filters as members of an object, together with other members. */
function withFilters<Shape extends z.ZodRawShape>(shape: Shape) {
  const known = { ...shape, ...filters };
  return z.looseObject(known).superRefine((given, context) => checkOthers(given, known, context), {
    // Also if a known member is wrong: the reply names everything that is.
    when: ({ value }) => typeof value === 'object' && value !== null,
  });
}

/** The parameters of the list. */
export const keyListQuery = withFilters({
  ...pageQuery,
  pastMaxLifetime: queryBoolean.meta({ type: 'boolean', default: false, description: pastMaxLifetimeMeaning }),
  includeDeleted: queryBoolean.meta({ type: 'boolean', default: false, description: includeDeletedMeaning }),
}).meta({ additionalProperties: metadataTexts });

/** The filter of a bulk request. */
export const keyFilterInput = withFilters({
  pastMaxLifetime: z
    .boolean()
    .refine((isSet) => isSet, 'must be true or left out')
    .optional()
    .meta({ description: pastMaxLifetimeMeaning, enum: [true] }),
  includeDeleted: z.boolean().optional().meta({ description: includeDeletedMeaning }),
})
  .refine(
    ({ includeDeleted: _, ...narrowing }) => Object.keys(narrowing).length > 0,
    'must have at least one member other than includeDeleted, which selects more keys, not fewer',
  )
  .meta({ id: 'KeyFilter', description: metadataMeaning, example: { name: 'Billing' } });

type Given = Omit<KeyFilter, 'metadata' | 'restorableAfter'> & { includeDeleted?: boolean | undefined };

/** @param given as `keyListQuery` or `keyFilterInput` returned it */
export function toKeyFilter(given: Given, now: Date, undoWindowSeconds: number): KeyFilter {
  const { includeDeleted, ...filter } = given;
  return {
    ...filter,
    metadata: Object.entries(given)
      .filter(([name]) => name.startsWith(metadataPrefix))
      .map(([name, text]) => [name.slice(metadataPrefix.length), String(text)]),
    restorableAfter: includeDeleted === true ? new Date(now.getTime() - undoWindowSeconds * 1000) : undefined,
  };
}

/** Rejects unknown members other than `metadata.<member>`. */
function checkOthers(given: Record<string, unknown>, known: z.ZodRawShape, context: z.RefinementCtx): void {
  const others = Object.entries(given).filter(([name]) => !Object.hasOwn(known, name));
  const isMetadata = (name: string) => name.startsWith(metadataPrefix) && name.length > metadataPrefix.length;
  const unknown = others.map(([name]) => name).filter((name) => !isMetadata(name));
  if (unknown.length > 0) context.addIssue({ code: 'unrecognized_keys', keys: unknown, input: given });
  for (const [index, [name, text]] of others.filter(([name]) => isMetadata(name)).entries()) {
    const reject = (message: string) => context.addIssue({ code: 'custom', path: [name], message });
    if (typeof text !== 'string') reject('must be one string');
    else if (text.length > longestText) reject(`must have at most ${longestText} characters`);
    if (index === mostMembers)
      reject(`must not be the ${mostMembers + 1}th member of metadata; at most ${mostMembers} can be given`);
  }
}
