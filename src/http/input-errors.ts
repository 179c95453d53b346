import type { FastifySchemaValidationError } from 'fastify';
import type { InputError } from '../core/errors.ts';

/** The prefix of a path, by the part of the request that Fastify was validating. */
const partNames: Record<string, string> = { querystring: 'query', params: 'path', headers: 'headers', body: 'body' };

/** What zod found wrong, one entry each, with paths such as `body.rateLimit.requests` and `query.limit`. */
export function inputErrorsOf(issues: readonly FastifySchemaValidationError[], context: string): InputError[] {
  const part = partNames[context] ?? context;
  return issues.flatMap((issue) => {
    const path = [part, ...issue.instancePath.split('/').filter((step) => step !== '')].join('.');
    const { keys } = issue.params;
    if (Array.isArray(keys)) return keys.map((key) => ({ path: `${path}.${key}`, message: 'is not known here' }));
    return [{ path, message: issue.message ?? 'is not valid' }];
  });
}
