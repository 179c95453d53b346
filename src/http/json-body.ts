import type { FastifyInstance } from 'fastify';
import fp from 'fastify-plugin';
import type { SecretText } from '../crypto/secret-text.ts';
import { Problem, validationProblem } from '../domain/errors.ts';
import { isNestedDeeper, mayChangeNumbers, repeatedMember, withChangedNumbersInfinite } from '../lib/json-text.ts';

/** Deeper than any honest body, and shallow enough for whatever recurses over it later. */
const deepest = 32;

/** Bodies are JSON objects in UTF-8. What Postgres or RFC 8785 could not keep, and what must not be kept, is rejected here. */
export const jsonBody = fp(
  async (app) => {
    app.removeAllContentTypeParsers();
    // Without a promise, like the hooks that every request passes: what is thrown here Fastify takes as the refusal.
    app.addContentTypeParser<Buffer>('application/json', { parseAs: 'buffer' }, (_request, body, done) => {
      done(null, parseJson(body, app.secretText));
    });
  },
  { name: 'json-body', dependencies: ['strict-routes'] },
);

/** For routes of this scope whose bodies present a credential and are not stored: values may be any text, tokens too. */
export function takeAnyText(app: Pick<FastifyInstance, 'removeContentTypeParser' | 'addContentTypeParser'>): void {
  app.removeContentTypeParser('application/json');
  app.addContentTypeParser<Buffer>('application/json', { parseAs: 'buffer' }, (_request, body, done) => {
    done(null, parseJson(body, undefined));
  });
}

function parseJson(body: Buffer, secrets: SecretText | undefined): unknown {
  const text = decodeUtf8(body);
  if (isNestedDeeper(deepest, text)) {
    throw new Problem('bad_request', `The body is nested deeper than ${deepest} levels.`);
  }
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (cause) {
    throw new Problem('bad_request', 'The body is not valid JSON.', { cause });
  }
  const repeated = repeatedMember(text, value);
  if (repeated !== undefined) throw validationProblem(`body.${repeated}`, 'must not be there twice');
  const flaw = findFlaw(text, value, secrets);
  if (flaw !== undefined) {
    const { code, path, message } = flaw;
    throw new Problem(code, `${path}: ${message}`, { errors: [{ path, message }] });
  }
  return value;
}

const utf8 = new TextDecoder('utf-8', { fatal: true });

function decodeUtf8(body: Buffer): string {
  try {
    return utf8.decode(body);
  } catch (cause) {
    throw new Problem('bad_request', 'The body is not valid UTF-8.', { cause });
  }
}

/** The name that would reach an object's prototype when code copies members without care. */
const poisonous = '__proto__';

/** JSON forbids a bare U+0000 and UTF-8 a lone surrogate, so both can only come as escapes. Spares a search on the hot path. */
function mayBeUnstorable(text: string): boolean {
  return text.includes('\\u') || text.includes(poisonous);
}

type TextFlaw = Pick<Flaw, 'code' | 'message'>;

interface Flaw {
  code: 'validation_failed' | 'secret_in_text';
  path: string;
  message: string;
}

/**
 * The first value or member name that cannot be stored: U+0000, a lone surrogate, `__proto__`, a number that a double
 * changes, or text with a token in it.
 * @param secrets undefined where values may be any text
 */
function findFlaw(text: string, value: unknown, secrets: SecretText | undefined): Flaw | undefined {
  const hasLongNumbers = mayChangeNumbers(text);
  const toSearch = secrets?.mayBeIn(text) === true ? secrets : undefined;
  if (!hasLongNumbers && toSearch === undefined && !mayBeUnstorable(text)) return undefined;
  const searched = hasLongNumbers ? JSON.parse(withChangedNumbersInfinite(text)) : value;
  const ofText = (of: string) => flawOf(of, toSearch);
  return firstFlaw(searched, 'body', { ofName: ofText, ofValue: secrets === undefined ? () => undefined : ofText });
}

interface Checks {
  ofName: (name: string) => TextFlaw | undefined;
  ofValue: (value: string) => TextFlaw | undefined;
}

function firstFlaw(value: unknown, path: string, checks: Checks): Flaw | undefined {
  if (typeof value === 'string') return flawAt(path, checks.ofValue(value));
  if (value === Number.POSITIVE_INFINITY) return flawAt(path, unstorable(changedNumber));
  if (typeof value !== 'object' || value === null) return undefined;
  const isList = Array.isArray(value);
  for (const [name, member] of Object.entries(value)) {
    const wrong = isList
      ? undefined
      : name === poisonous
        ? unstorable('this name is not allowed')
        : checks.ofName(name);
    if (wrong !== undefined) return flawAt(`${path}.${JSON.stringify(name).slice(1, -1)}`, wrong);
    const flaw = firstFlaw(member, `${path}.${name}`, checks);
    if (flaw !== undefined) return flaw;
  }
  return undefined;
}

const changedNumber = 'must be a number that a double holds exactly; send a larger or a finer one as a string';

function flawOf(text: string, secrets: SecretText | undefined): TextFlaw | undefined {
  if (text.includes('\u0000')) return unstorable('must not contain U+0000');
  if (!text.isWellFormed()) return unstorable('must not contain a lone surrogate');
  if (secrets?.isIn(text) !== true) return undefined;
  return { code: 'secret_in_text', message: 'must not contain a Latchkey token' };
}

function unstorable(message: string): TextFlaw {
  return { code: 'validation_failed', message };
}

function flawAt(path: string, wrong: TextFlaw | undefined): Flaw | undefined {
  return wrong && { ...wrong, path };
}
