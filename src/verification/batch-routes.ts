import type { FastifyReply, FastifyRequest, FastifySchemaCompiler } from 'fastify';
import { type FastifyPluginAsyncZod, validatorCompiler } from 'fastify-type-provider-zod';
import { z } from 'zod';
import { toProblem } from '../database/pg-error.ts';
import { Problem, validationProblems } from '../domain/errors.ts';
import type { OrganizationId } from '../domain/ids.ts';
import { createConcurrencyLimit, onceClosed, organizationGroupOf } from '../http/concurrency-limit.ts';
import { accessTokenOf } from '../http/guard.ts';
import { inputErrorsAt } from '../http/input-errors.ts';
import { allowTokensInBody } from '../http/json-body.ts';
import { problemBody } from '../http/problem.ts';
import { removeFromFacts } from '../http/request-facts.ts';
import { problemView } from '../http/schemas.ts';
import { requestsNoCache } from './routes.ts';
import { verdictJson, verdictView } from './verdict-view.ts';
import type { Verifier } from './verifier.ts';
import { batchEntry, batchRequest, maxBatchEntries, uncheckedBatchRequest } from './verify-request.ts';

/** Enough for a full batch, each entry with a key of usual length and an IPv6 address. */
const batchBodyLimitBytes = 524_288;

/** Bytes of bodies that arrive or are verified at once; half of what is free for one organization. */
const bytesAtOnce = 67_108_864;

const batchView = z
  .object({ data: z.array(z.union([verdictView, problemView]).meta({ id: 'VerdictOrProblem' })) })
  .meta({
    id: 'VerifyBatchReply',
    description: "One result per entry, in the entries' order: a verdict, or a problem if the entry failed.",
  });

/** Checks only the number of entries: an invalid entry gets its own problem and does not fail the batch. */
const batchValidator: FastifySchemaCompiler<z.ZodType> = (part) =>
  validatorCompiler(part.httpPart === 'body' ? { ...part, schema: uncheckedBatchRequest } : part);

/** For backends that verify many keys at once, or report uses that they allowed by a cached verdict. */
export const batchRoutes: FastifyPluginAsyncZod<{ verifier: Verifier }> = async (app, { verifier }) => {
  const limit = createConcurrencyLimit({
    resources: 'bytes of batches',
    totalLimit: bytesAtOnce,
    retryAfterSeconds: 1,
  });
  // Before the body: without a bound, slow bodies on many connections would fill the memory.
  app.addHook('onRequest', async (request, reply) => {
    onceClosed(reply.raw, limit.acquire(organizationGroupOf(request), bytesOf(request)));
  });
  app.setValidatorCompiler(batchValidator);
  allowTokensInBody(app);
  app.post(
    '/verify/batch',
    {
      bodyLimit: batchBodyLimitBytes,
      config: { access: { role: 'verifier', scope: 'read' }, problems: ['overloaded'] },
      schema: {
        operationId: 'verifyKeys',
        tags: ['Verification'],
        summary: 'Verify several API keys',
        description:
          `Verifies up to ${maxBatchEntries} entries in a body of up to ${batchBodyLimitBytes / 1024} KiB. Each entry gets the same reply as from ` +
          'verify, in the same order. An entry that fails gets a problem in its place and does not fail the others. ' +
          '`Cache-Control: no-cache` reads the records from the database.',
        body: batchRequest,
        response: { 200: batchView },
      },
    },
    async (request, reply) => {
      const callerOrganizationId = accessTokenOf(request).actsIn;
      const fresh = requestsNoCache(request.headers['cache-control']);
      const answers = request.body.entries.map((entry, index) =>
        answerEntry(entry, index, { verifier, callerOrganizationId, fresh, request, reply }),
      );
      const text = `{"data":[${(await Promise.all(answers)).join(',')}]}`;
      return reply.type('application/json; charset=utf-8').send(text as never);
    },
  );
};

/** A body without a length may have the whole limit. */
function bytesOf({ headers }: FastifyRequest): number {
  return Math.min(Number(headers['content-length'] ?? batchBodyLimitBytes), batchBodyLimitBytes);
}

interface BatchContext {
  verifier: Verifier;
  callerOrganizationId: OrganizationId | null;
  fresh: boolean;
  request: FastifyRequest;
  reply: FastifyReply;
}

/** @returns JSON of a verdict or of a problem */
async function answerEntry(entry: unknown, index: number, context: BatchContext): Promise<string> {
  try {
    const { key, permission, ip, scopes, cost, uses } = readEntry(entry, index);
    const { callerOrganizationId, fresh } = context;
    removeFromFacts(key, context.request, context.reply);
    return verdictJson(
      await context.verifier.verify({
        key,
        requested: { permission, ip, scopes },
        callerOrganizationId,
        cost,
        fresh,
        reportedUses: uses,
      }),
    );
  } catch (error) {
    const problem =
      error instanceof Problem
        ? error
        : (toProblem(error) ?? new Problem('internal', 'Latchkey could not answer this entry.'));
    const { request } = context;
    if (problem.status >= 500) request.log.error({ reqId: request.id, err: error }, problem.detail);
    return request.server.secretText.mask(problemBody(problem, request.id));
  }
}

/** @throws Problem `validation_failed` */
function readEntry(entry: unknown, index: number): z.output<typeof batchEntry> {
  const parsed = batchEntry.safeParse(entry);
  if (parsed.success) return parsed.data;
  throw validationProblems(inputErrorsAt(`body.entries.${index}`, parsed.error.issues));
}
