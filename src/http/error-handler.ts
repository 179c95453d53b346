import { METHODS } from 'node:http';
import type { FastifyError, FastifyInstance, FastifyReply, FastifyRequest } from 'fastify';
import fp from 'fastify-plugin';
import { hasZodFastifySchemaValidationErrors } from 'fastify-type-provider-zod';
import { type InputError, Problem, type ProblemCode, validationProblems } from '../domain/errors.ts';
import { isForGateways } from './access.ts';
import { inputErrorsOf } from './input-errors.ts';
import { problemBody, problemHeaders } from './problem.ts';
import { pathOf } from './request-facts.ts';
import { traceIdOf } from './tracing.ts';

export interface ErrorHandlerOptions {
  /** Translates errors of other layers, such as the database's, to problems. Undefined: an unknown error. */
  translate: (error: unknown) => Problem | undefined;
  /** Numbers of replies by problem code. */
  tally?: Record<ProblemCode, number>;
  /** Called with each problem before the reply is sent. */
  onProblem?: (request: FastifyRequest, problem: Problem) => void;
}

/** Answers every error with a problem document, and logs one line. */
export const errorHandler = fp<ErrorHandlerOptions>(
  async (app, { translate, tally, onProblem }) => {
    const routeNotFound = (request: FastifyRequest) => notFound(request, methodsOfPath(app, pathOf(request)));
    const answerAndCount = (request: FastifyRequest, reply: FastifyReply, problem: Problem, cause: unknown) => {
      if (tally !== undefined) tally[problem.code] += 1;
      return answer(request, reply, problem, cause);
    };
    app.setErrorHandler((error: unknown, request, reply) => {
      // Fastify rejects a body without a content type before it checks that the route exists.
      const isNotFound = request.is404 && (error as FastifyError).code === 'FST_ERR_ROUTE_MISSING_CONTENT_TYPE';
      const problem = isNotFound ? routeNotFound(request) : toProblem(error, translate, request);
      onProblem?.(request, problem);
      const isGateways = isForGateways(request.routeOptions.config.access);
      return answerAndCount(request, reply, isGateways ? forGateway(problem) : problem, error);
    });
    app.setNotFoundHandler((request, reply) => {
      const problem = routeNotFound(request);
      return answerAndCount(request, reply, problem, problem);
    });
  },
  { name: 'error-handler', dependencies: ['strict-routes'] },
);

/** Gateways understand only these statuses; every other problem becomes 503. */
function forGateway(problem: Problem): Problem {
  if ([401, 403, 429, 503].includes(problem.status)) return problem;
  return new Problem('unavailable', 'Latchkey cannot decide now whether this request may pass. Try again.', {
    cause: problem.cause,
  });
}

/** Answers errors that Fastify finds before it has a route, such as a path with wrong percent-encoding. */
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
  // Probes come every few seconds: log the cause in one line, and nothing while the service stops.
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

/** Fastify's errors as problems, by error code: https://fastify.dev/docs/latest/Reference/Errors/ */
const problemOfFastifyError: Record<string, [code: ProblemCode, detail: string]> = {
  FST_ERR_CTP_BODY_TOO_LARGE: [
    'payload_too_large',
    'The body is longer than this endpoint accepts. Send a shorter one.',
  ],
  FST_ERR_CTP_INVALID_MEDIA_TYPE: [
    'unsupported_media_type',
    'This endpoint does not accept this content type. Send application/json, unless its description names another type.',
  ],
  FST_ERR_CTP_EMPTY_TYPE: ['unsupported_media_type', 'The body has no Content-Type; send application/json.'],
  FST_ERR_CTP_INVALID_CONTENT_LENGTH: ['bad_request', 'The length of the body differs from Content-Length.'],
  FST_ERR_BAD_URL: ['bad_request', 'The path is not valid percent-encoded UTF-8.'],
  FST_ERR_MAX_PARAM_LENGTH: ['not_found', 'No id is this long. Check the id in the path.'],
};

function toProblem(error: unknown, translate: ErrorHandlerOptions['translate'], request: FastifyRequest): Problem {
  if (error instanceof Problem) return error;
  if (hasZodFastifySchemaValidationErrors(error)) {
    const { validation, validationContext: part = 'body' } = error;
    const isMissing = part === 'body' && request.body === undefined;
    return validationProblems(isMissing ? [missingBody(request)] : inputErrorsOf(validation, part));
  }
  // Before `translate`, which takes a reset connection for the database's.
  if (error === request.raw.errored) {
    return new Problem('bad_request', 'The connection ended before the whole body had arrived.', { cause: error });
  }
  const known = problemOfFastifyError[(error as FastifyError).code];
  if (known !== undefined) return new Problem(known[0], known[1], { cause: error });
  return (
    translate(error) ??
    ofLibrary(error) ??
    new Problem('internal', 'An unexpected error occurred in Latchkey. The log has its cause under this request id.', {
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

/** Errors of the library that serves files carry an HTTP status. */
function ofLibrary(error: unknown): Problem | undefined {
  const { statusCode } = error as Partial<FastifyError>;
  if (statusCode === 403 || statusCode === 404)
    return new Problem('not_found', 'There is no such file.', { cause: error });
  if (statusCode === 400) return new Problem('bad_request', 'The path is not the path of a file.', { cause: error });
  return undefined;
}

function notFound(request: FastifyRequest, methods: string[]): Problem {
  const path = pathOf(request).slice(0, 200);
  if (methods.length === 0 || methods.includes(request.method)) {
    return new Problem('not_found', `There is no endpoint at ${path}. See /docs or /openapi.json for all endpoints.`);
  }
  const allow = methods.join(', ');
  return new Problem('method_not_allowed', `${path} does not support ${request.method}. Use ${allow}.`, {
    headers: { allow },
  });
}

/** The methods of a path, in Node's order. */
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
