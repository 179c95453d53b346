import { type Problem, problemKinds } from '../domain/errors.ts';
import { traceIdOfRequestId } from '../domain/trace.ts';

export const problemMediaType = 'application/problem+json';

/** A problem document (RFC 9457) as JSON. */
export function problemBody(problem: Problem, requestId: string, traceId = traceIdOfRequestId(requestId)): string {
  const { title, status } = problemKinds[problem.code];
  return JSON.stringify({
    type: `/problems/${problem.code}`,
    title,
    status,
    detail: problem.detail,
    code: problem.code,
    requestId,
    traceId,
    ...(problem.errors === undefined ? {} : { errors: problem.errors }),
    ...problem.members,
  });
}

/** The headers of every reply. */
export function commonHeaders(requestId: string): Record<string, string> {
  return { 'x-request-id': requestId, 'cache-control': 'no-store', 'x-content-type-options': 'nosniff' };
}

/** The headers of a reply with a problem document. */
export function problemHeaders(requestId: string): Record<string, string> {
  return { ...commonHeaders(requestId), 'content-type': `${problemMediaType}; charset=utf-8` };
}
