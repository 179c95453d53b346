import type { FastifyRequest } from 'fastify';
import fp from 'fastify-plugin';
import { Problem } from '../core/errors.ts';
import { isNestedDeeper } from '../lib/json-depth.ts';

/** Deeper than any honest body, and shallow enough for whatever recurses over it later. */
const deepest = 32;

declare module 'fastify' {
  interface FastifyContextConfig {
    /** Text in the body is not stored, so it may be one that Postgres could not hold, such as U+0000. */
    takesAnyText?: boolean;
  }
}

type Takes = 'any text' | 'storable text';

/** Asked only where it matters: Fastify copies a route's options at each access. */
function takenBy({ routeOptions }: FastifyRequest): Takes {
  return routeOptions.config.takesAnyText === true ? 'any text' : 'storable text';
}

/** Bodies are JSON objects in UTF-8; whatever Postgres or RFC 8785 could not keep is refused here, once for all. */
export const jsonBody = fp(
  async (app) => {
    app.removeAllContentTypeParsers();
    // Without a promise, like the hooks that every request passes: what is thrown here Fastify takes as the refusal.
    app.addContentTypeParser<Buffer>('application/json', { parseAs: 'buffer' }, (request, body, done) => {
      done(null, parseJson(body, request));
    });
  },
  { name: 'json-body' },
);

function parseJson(body: Buffer, request: FastifyRequest): unknown {
  if (body.length === 0) throw new Problem('bad_request', 'The body is empty, though its type is application/json.');
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
  const bad = isSuspicious(text) ? findUnstorable(value, takenBy(request)) : undefined;
  if (bad !== undefined) {
    throw new Problem('validation_failed', `${bad.path}: ${bad.message}`, { errors: [bad] });
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

/** A number that a double may be too small for: with an exponent, or with more digits than 1.8e308 has. */
const exponent = /[:,[\s]-?\d[\d.]*[eE]/;
const digitsOfLargest = 309;
const manyDigits = new RegExp(`(?<!\\d)\\d{${digitsOfLargest}}`);

/**
 * JSON forbids a bare U+0000 and UTF-8 a lone surrogate, so without an escape, the name, an exponent or hundreds of digits
 * there is nothing to find. Spares a search on the hot path.
 */
function isSuspicious(text: string): boolean {
  return (
    text.includes('\\u') ||
    text.includes(poisonous) ||
    exponent.test(text) ||
    (text.length >= digitsOfLargest && manyDigits.test(text))
  );
}

/** The first value or member name that cannot be stored: U+0000, a lone surrogate, `__proto__`, a number over 1.8e308. */
function findUnstorable(value: unknown, takes: Takes, path = 'body'): { path: string; message: string } | undefined {
  if (typeof value === 'string') {
    const message = takes === 'any text' ? undefined : whatIsWrong(value);
    return message === undefined ? undefined : { path, message };
  }
  if (value === Number.POSITIVE_INFINITY || value === Number.NEGATIVE_INFINITY) {
    return { path, message: 'must be a number that a double can hold' };
  }
  if (Array.isArray(value)) {
    return firstOf(
      value.map((item, index) => [String(index), item] as const),
      takes,
      path,
    );
  }
  if (typeof value !== 'object' || value === null) return undefined;
  return firstOf(Object.entries(value), takes, path);
}

function firstOf(
  members: ReadonlyArray<readonly [string, unknown]>,
  takes: Takes,
  path: string,
): { path: string; message: string } | undefined {
  for (const [name, member] of members) {
    const message = name === poisonous ? 'this name is not allowed' : whatIsWrong(name);
    if (message !== undefined) return { path: `${path}.${JSON.stringify(name).slice(1, -1)}`, message };
    const bad = findUnstorable(member, takes, `${path}.${name}`);
    if (bad !== undefined) return bad;
  }
  return undefined;
}

function whatIsWrong(text: string): string | undefined {
  if (text.includes('\u0000')) return 'must not contain U+0000';
  return text.isWellFormed() ? undefined : 'must not contain a lone surrogate';
}
