import type { FastifyInstance } from 'fastify';
import fp from 'fastify-plugin';
import { presentedTexts } from '../credentials/presented.ts';
import { holdsCredential, type SecretText } from '../crypto/secret-text.ts';
import { Problem, validationProblem } from '../domain/errors.ts';
import { isNestedDeeper, mayChangeNumbers, repeatedMember, withInexactNumbersInfinite } from '../lib/json-text.ts';

/** The limit keeps recursive functions from overflowing the stack. */
const maxNesting = 32;

/** Parses JSON bodies. Rejects what Postgres or RFC 8785 cannot represent, and text that contains a token. */
export const jsonBody = fp(
  async (app) => {
    app.removeAllContentTypeParsers();
    // No promise, to save time per request; Fastify turns an exception into the reply.
    app.addContentTypeParser<Buffer>('application/json', { parseAs: 'buffer' }, (request, body, done) => {
      const value = parseJson(body, app.secretText);
      // An imported key has no form by which it could be found. Only this request shows what it is.
      if (request.principal?.kind === 'api_key') refuseCredentials(value, presentedTexts(request.raw));
      done(null, value);
    });
  },
  { name: 'json-body', dependencies: ['strict-routes'] },
);

/**
 * Accepts any text, including tokens, on the routes of this scope. For bodies that carry a credential and are not stored,
 * and for routes that search their input themselves.
 */
export function allowTokensInBody(
  app: Pick<FastifyInstance, 'removeContentTypeParser' | 'addContentTypeParser'>,
): void {
  app.removeContentTypeParser('application/json');
  app.addContentTypeParser<Buffer>('application/json', { parseAs: 'buffer' }, (_request, body, done) => {
    done(null, parseJson(body, undefined));
  });
}

/** Parses the JSON of a signed body, whose values may be any text. */
export function parseSignedJson(body: Buffer): unknown {
  return parseJson(body, undefined);
}

function refuseCredentials(value: unknown, credentials: readonly string[]): void {
  const ofText = (text: string): TextFlaw | undefined => {
    if (!credentials.some((credential) => holdsCredential(text, credential))) return undefined;
    return { code: 'secret_in_text', message: 'must not contain the credential of the request' };
  };
  const flaw = firstFlaw(value, 'body', { ofName: ofText, ofValue: ofText });
  if (flaw !== undefined) throw toProblem(flaw);
}

/** Parses a JSON text strictly. @throws Problem `bad_request`, `validation_failed`, `secret_in_text` */
export function parseJson(body: Buffer, secrets: SecretText | undefined): unknown {
  const text = decodeUtf8(body);
  if (isNestedDeeper(maxNesting, text)) {
    throw new Problem('bad_request', `The body is nested deeper than ${maxNesting} levels.`);
  }
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (cause) {
    throw new Problem('bad_request', 'The body is not valid JSON.', { cause });
  }
  const repeated = repeatedMember(text, value);
  if (repeated !== undefined) throw validationProblem(`body.${repeated}`, 'must not occur twice');
  const flaw = findFlaw(text, value, secrets);
  if (flaw !== undefined) throw toProblem(flaw);
  return value;
}

function toProblem({ code, path, message }: Flaw): Problem {
  return new Problem(code, `${path}: ${message}`, { errors: [{ path, message }] });
}

const utf8 = new TextDecoder('utf-8', { fatal: true });

function decodeUtf8(body: Buffer): string {
  try {
    return utf8.decode(body);
  } catch (cause) {
    throw new Problem('bad_request', 'The body is not valid UTF-8.', { cause });
  }
}

/** A member name that can change an object's prototype. */
const prototypeMember = '__proto__';

/** A quick check: U+0000 and lone surrogates can only occur as escapes. */
function mayBeUnstorable(text: string): boolean {
  return text.includes('\\u') || text.includes(prototypeMember);
}

type TextFlaw = Pick<Flaw, 'code' | 'message'>;

interface Flaw {
  code: 'validation_failed' | 'secret_in_text';
  path: string;
  message: string;
}

/**
 * The first value or member name that cannot be stored: U+0000, a lone surrogate, `__proto__`, a number that a double cannot
 * represent exactly, or text that contains a token.
 * @param secrets undefined if values may be any text
 */
function findFlaw(text: string, value: unknown, secrets: SecretText | undefined): Flaw | undefined {
  const hasLongNumbers = mayChangeNumbers(text);
  const toSearch = secrets?.mayBeIn(text) === true ? secrets : undefined;
  if (!hasLongNumbers && toSearch === undefined && !mayBeUnstorable(text)) return undefined;
  const searched = hasLongNumbers ? JSON.parse(withInexactNumbersInfinite(text)) : value;
  const ofText = (of: string) => flawOf(of, toSearch);
  return firstFlaw(searched, 'body', { ofName: ofText, ofValue: secrets === undefined ? () => undefined : ofText });
}

/** Like the search in a body, for a value on a route that allows tokens in its body. */
export function findTextFlaw(value: unknown, path: string, secrets: SecretText): Flaw | undefined {
  const ofText = (of: string) => flawOf(of, secrets);
  return firstFlaw(value, path, { ofName: ofText, ofValue: ofText });
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
      : name === prototypeMember
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
