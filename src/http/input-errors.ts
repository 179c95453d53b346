import type { FastifySchemaValidationError } from 'fastify';
import type { z } from 'zod';
import type { InputError } from '../domain/errors.ts';
// Registers the API's messages for zod issues.
import '../lib/input-messages.ts';

/** The prefix of paths, by the part of the request that Fastify validated. */
const partNames: Record<string, string> = { querystring: 'query', params: 'path', headers: 'headers', body: 'body' };

interface Issue {
  code: string;
  path: string;
  message: string;
  /** The names of unknown members. */
  keys?: unknown;
}

/** The issues of one part of a request, with paths such as `body.rateLimit.requests` and `query.limit`. */
export function inputErrorsOf(issues: readonly FastifySchemaValidationError[], context: string): InputError[] {
  const part = partNames[context] ?? context;
  return toInputErrors(
    issues.map(({ keyword, instancePath, message = 'is not allowed', params }) => {
      const steps = instancePath.split('/').filter((step) => step !== '');
      return { ...params, code: keyword, path: [part, ...steps].join('.'), message };
    }),
  );
}

/** The issues of a value that is validated separately. @param at its path in the request, such as `body.entries.3` */
export function inputErrorsAt(at: string, issues: readonly z.core.$ZodIssue[]): InputError[] {
  return toInputErrors(issues.map((issue) => ({ ...issue, path: [at, ...issue.path].join('.') })));
}

function toInputErrors(issues: Issue[]): InputError[] {
  // Zod also reports the length of values that have the wrong type.
  const ofOtherType = new Set(issues.filter(({ code }) => code === 'invalid_type').map(({ path }) => path));
  return issues
    .filter(({ code, path }) => code === 'invalid_type' || !ofOtherType.has(path))
    .flatMap(({ path, message, keys }) =>
      Array.isArray(keys)
        ? keys.map((key) => ({ path: `${path}.${key}`, message: 'is unknown; remove it' }))
        : [{ path, message }],
    );
}
