import { METHODS } from 'node:http';
import type { FastifyError, FastifyInstance, FastifyReply, FastifyRequest } from 'fastify';
import fp from 'fastify-plugin';
import { hasZodFastifySchemaValidationErrors } from 'fastify-type-provider-zod';
import { type InputError, Problem, type ProblemCode, validationProblems } from '../domain/errors.ts';
import { inputErrorsOf } from './input-errors.ts';
import { problemBody, problemHeaders } from './problem.ts';
import { traceIdOf } from './tracing.ts';

export interface ErrorHandlerOptions {
  /** Errors of other layers, such as the database's, as problems; undefined for what it does not know. */
  translate: (error: unknown) => Problem | undefined;
  /** How often each problem was answered. */
  tally?: Record<ProblemCode, number>;
  /** Told of each problem before it is answered. */
  onProblem?: (request: FastifyRequest, problem: Problem) => void;
}

/** The one exit for everything that goes wrong: a problem document, and one line in the log. */
export const errorHandler = fp<ErrorHandlerOptions>(
  async (app, { translate, tally, onProblem }) => {
    const missing = (request: FastifyRequest) => notFound(request, methodsOfPath(app, pathOf(request)));
    const refuse = (request: FastifyRequest, reply: FastifyReply, problem: Problem, cause: unknown) => {
      if (tally !== undefined) tally[problem.code] += 1;
      return answer(request, reply, problem, cause);
    };
    app.setErrorHandler((error: unknown, request, reply) => {
      // The framework looks at a body, or misses one, before it says that there is no such path or method.
      const isNotFound = request.is404 && (error as FastifyError).code === 'FST_ERR_ROUTE_MISSING_CONTENT_TYPE';
      const problem = isNotFound ? missing(request) : toProblem(error, translate, request);
      onProblem?.(request, problem);
      return refuse(request, reply, isGateways(request) ? forGateway(problem) : problem, error);
    });
    app.setNotFoundHandler((request, reply) => {
      const problem = missing(request);
      return refuse(request, reply, problem, problem);
    });
  },
  { name: 'error-handler', dependencies: ['strict-routes'] },
);

function isGateways(request: FastifyRequest): boolean {
  const { access } = request.routeOptions.config;
  return access !== undefined && access !== 'public' && access.role === 'gateway';
}

/** What a gateway understands; whatever else went wrong, its client can do nothing about it. */
function forGateway(problem: Problem): Problem {
  if ([401, 403, 429, 503].includes(problem.status)) return problem;
  return new Problem('unavailable', 'Whether this request may pass cannot be said now.', { cause: problem.cause });
}

/** Refusals from before a route was found, such as a path that is not well percent-encoded. */
export function answerFrameworkError(error: FastifyError, request: FastifyRequest, reply: FastifyReply): void {
  answer(
    request,
    reply,
    toProblem(error, () => undefined, request),
    error,
  );
}

function answer(request: FastifyRequest, reply: FastifyReply, problem: Problem, cause: unknown): FastifyReply {
  logOnce(request, problem, cause);
  const retryAfter = problem.status === 503 ? { 'retry-after': '1' } : {};
  return reply
    .code(problem.status)
    .headers({ ...retryAfter, ...problemHeaders(request.id), ...problem.headers })
    .send(request.server.secretText.mask(problemBody(problem, request.id, traceIdOf(request))));
}

function isHealthProbe({ routeConfig }: FastifyRequest): boolean {
  return routeConfig?.probe === 'health';
}

function logOnce(request: FastifyRequest, problem: Problem, cause: unknown): void {
  const facts = { reqId: request.id, traceId: traceIdOf(request) };
  // Probes come every few seconds: the cause as one line, and none where there is no cause but the stop.
  if (isHealthProbe(request)) {
    const { cause: reason } = problem;
    if (reason === undefined) request.log.debug({ ...facts, code: problem.code }, problem.detail);
    else request.log.warn({ ...facts, code: problem.code, reason: String(reason) }, problem.detail);
    return;
  }
  // A rejection without a cause, such as by an overloaded or stopping process, needs no stack.
  const err = cause === problem ? problem.cause : cause instanceof Problem ? (cause.cause ?? cause) : cause;
  if (problem.status >= 500 && (err === undefined || problem.code === 'overloaded')) {
    request.log.warn({ ...facts, code: problem.code }, problem.detail);
  } else if (problem.status >= 500) {
    request.log.error({ ...facts, err }, problem.detail);
  } else {
    request.log.debug({ ...facts, code: problem.code }, problem.detail);
  }
}

/** Fastify's own refusals, by its error codes: https://fastify.dev/docs/latest/Reference/Errors/ */
const problemOfFastifyError: Record<string, [code: ProblemCode, detail: string]> = {
  FST_ERR_CTP_BODY_TOO_LARGE: ['payload_too_large', 'The body is longer than this endpoint takes.'],
  FST_ERR_CTP_INVALID_MEDIA_TYPE: [
    'unsupported_media_type',
    'This endpoint does not read bodies of this type. Where its description names no other, it is application/json.',
  ],
  FST_ERR_CTP_EMPTY_TYPE: ['unsupported_media_type', 'The body has no Content-Type; send application/json.'],
  FST_ERR_CTP_INVALID_CONTENT_LENGTH: ['bad_request', 'The body is not as long as Content-Length says.'],
  FST_ERR_BAD_URL: ['bad_request', 'The path is not well percent-encoded UTF-8.'],
  FST_ERR_MAX_PARAM_LENGTH: ['not_found', 'There is nothing with an id this long.'],
};

function toProblem(error: unknown, translate: ErrorHandlerOptions['translate'], request: FastifyRequest): Problem {
  if (error instanceof Problem) return error;
  if (hasZodFastifySchemaValidationErrors(error)) {
    const { validation, validationContext: part = 'body' } = error;
    const isMissing = part === 'body' && request.body === undefined;
    return validationProblems(isMissing ? [missingBody(request)] : inputErrorsOf(validation, part));
  }
  const known = problemOfFastifyError[(error as FastifyError).code];
  if (known !== undefined) return new Problem(known[0], known[1], { cause: error });
  return (
    translate(error) ??
    ofLibrary(error) ??
    new Problem('internal', 'Something failed inside Latchkey. The log has the cause under this request id.', {
      cause: error,
    })
  );
}

function missingBody({ routeOptions }: FastifyRequest): InputError {
  const isForm = routeOptions.schema?.consumes !== undefined;
  const expected = isForm
    ? 'a form, sent as application/x-www-form-urlencoded'
    : 'a JSON body, sent as application/json';
  return { path: 'body', message: `is required: ${expected}` };
}

/** What a library that serves files says of a path: by convention its errors carry the status. */
function ofLibrary(error: unknown): Problem | undefined {
  const { statusCode } = error as Partial<FastifyError>;
  if (statusCode === 403 || statusCode === 404)
    return new Problem('not_found', 'There is no such file.', { cause: error });
  if (statusCode === 400) return new Problem('bad_request', 'This is not a path of a file.', { cause: error });
  return undefined;
}

function notFound(request: FastifyRequest, methods: string[]): Problem {
  const path = pathOf(request).slice(0, 200);
  if (methods.length === 0 || methods.includes(request.method)) {
    return new Problem('not_found', `There is nothing at ${path}. What there is, /docs and /openapi.json describe.`);
  }
  const allow = methods.join(', ');
  return new Problem('method_not_allowed', `${request.method} is not possible at ${path}, only ${allow}.`, {
    headers: { allow },
  });
}

function pathOf(request: FastifyRequest): string {
  return request.raw.url?.split('?', 1)[0] ?? '/';
}

/** The methods that a path has, in Node's order. */
function methodsOfPath(app: FastifyInstance, path: string): string[] {
  const methods = app.routeList.filter(({ url }) => patternOf(url).test(path)).flatMap(({ method }) => method);
  return METHODS.filter((method) => methods.includes(method));
}

function patternOf(url: string): RegExp {
  const source = url
    .split('/')
    .map((part) =>
      part.startsWith(':') ? '[^/]+' : part === '*' ? '.*' : part.replaceAll(/[.+?^${}()|[\]\\]/g, '\\$&'),
    );
  return new RegExp(`^${source.join('/')}$`);
}
