import { z } from 'zod';
import type { SecretText } from '../crypto/secret-text.ts';
import { hasTokenForm } from '../crypto/token.ts';
import type { ProblemCode } from '../domain/errors.ts';
import { inputErrorsAt } from '../http/input-errors.ts';
import { findTextFlaw } from '../http/json-body.ts';
import { externalIdInput, idSchema, permissionSchema } from '../http/schemas.ts';
import type { ImportEntry } from './import-commands.ts';
import { importedToken } from './imported-token.ts';
import { keySettingsInput } from './input.ts';

/** No space at either end: HTTP removes it from the header that carries the token. */
const tokenText = /^[\x21-\x7e][\x20-\x7e]*[\x21-\x7e]$/;

export const importEntryInput = z
  .strictObject({
    partnerId: idSchema('partner').optional(),
    partnerExternalId: externalIdInput
      .optional()
      .meta({ description: "Without a partner the key belongs to the organization's default row." }),
    permission: permissionSchema.optional().meta({ description: 'Required only for a partner with both permissions.' }),
    ...keySettingsInput,
    plaintext: z
      .string()
      .min(16)
      .max(512)
      .regex(tokenText, 'must be printable ASCII, without a space at either end')
      .optional()
      .meta({
        description:
          'The token itself. It can be revealed later if the organization allows reveals. Exactly one of plaintext and sha256.',
        example: 'acme_live_9f2c1b7e4d8a4f0c',
      }),
    sha256: z
      .string()
      .regex(/^[0-9a-fA-F]{64}$/, 'must be 64 hex digits')
      .optional()
      .meta({
        description: 'The SHA-256 of the whole token, if the token itself is not known. It can never be revealed.',
        example: '2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae',
      }),
    lastFour: z
      .string()
      .regex(/^[\x21-\x7e]{4}$/, 'must be four printable ASCII characters')
      .nullish()
      .meta({ description: 'The last four characters of the token, for its masked form.', example: '4f0c' }),
  })
  .superRefine(({ partnerId, partnerExternalId, plaintext, sha256, lastFour }, context) => {
    const flaw = (member: string, message: string) => context.addIssue({ code: 'custom', path: [member], message });
    if (partnerId !== undefined && partnerExternalId !== undefined) {
      flaw('partnerExternalId', 'must not be given together with partnerId');
    }
    if (plaintext === undefined && sha256 === undefined) flaw('sha256', 'is missing; give plaintext or sha256');
    if (plaintext !== undefined && sha256 !== undefined) flaw('sha256', 'must not be given together with plaintext');
    if (plaintext !== undefined && lastFour != null && !plaintext.endsWith(lastFour)) {
      flaw('lastFour', 'must be the last four characters of plaintext');
    }
  })
  .meta({
    id: 'KeyImportEntry',
    example: { partnerExternalId: 'customer-4711', permission: 'read', plaintext: 'acme_live_9f2c1b7e4d8a4f0c' },
  });

/** What is wrong with the form of an entry. */
export interface EntryFlaw {
  /** The member, such as `rateLimit.requests`; empty for the entry itself. */
  path: string;
  code: ProblemCode;
  message: string;
}

interface ReadingOptions {
  secrets: SecretText;
  /** The prefix of this installation's tokens. */
  tokenPrefix: string;
}

/** Reads one entry of an import, from a request or from a file. */
export function readImportEntry(value: unknown, options: ReadingOptions): ImportEntry | { flaws: EntryFlaw[] } {
  const unstorable = findTextFlaw(value, 'entry', options.secrets);
  const parsed = importEntryInput.safeParse(value);
  if (unstorable !== undefined) return { flaws: [{ ...unstorable, path: withinEntry(unstorable.path) }] };
  if (!parsed.success) {
    const errors = inputErrorsAt('entry', parsed.error.issues);
    return {
      flaws: errors.map(({ path, message }) => ({ path: withinEntry(path), code: 'validation_failed', message })),
    };
  }
  const { plaintext, sha256, lastFour, partnerId, partnerExternalId, ...settings } = parsed.data;
  if (plaintext !== undefined) {
    const flaw = flawOfPlaintext(plaintext, { partnerExternalId, ...settings }, options.tokenPrefix);
    if (flaw !== undefined) return { flaws: [flaw] };
  }
  const { name, rateLimit, ...rest } = settings;
  return {
    ...rest,
    name: name ?? null,
    rateLimit: rateLimit ?? null,
    partner:
      partnerId !== undefined
        ? { id: partnerId }
        : partnerExternalId === undefined
          ? undefined
          : { externalId: partnerExternalId },
    token: importedToken(
      plaintext === undefined ? { sha256: sha256 ?? '', lastFour: lastFour ?? null } : { plaintext },
    ),
  };
}

function withinEntry(path: string): string {
  return path.slice('entry.'.length);
}

/** A token of Latchkey's form is always looked up by its id; and stored text must not contain the plaintext. */
function flawOfPlaintext(
  plaintext: string,
  texts: Record<string, unknown>,
  tokenPrefix: string,
): EntryFlaw | undefined {
  if (hasTokenForm(plaintext, tokenPrefix)) {
    return { path: 'plaintext', code: 'validation_failed', message: 'must not have the form of a Latchkey token' };
  }
  const asJson = JSON.stringify(plaintext).slice(1, -1);
  for (const [path, text] of Object.entries(texts)) {
    if (text === undefined || !JSON.stringify(text).includes(asJson)) continue;
    return { path, code: 'secret_in_text', message: 'must not contain the plaintext' };
  }
  return undefined;
}
