import type { FastifyRequest, FastifySchemaCompiler } from 'fastify';
import { type FastifyPluginAsyncZod, validatorCompiler } from 'fastify-type-provider-zod';
import { z } from 'zod';
import { toProblem } from '../database/pg-error.ts';
import { Problem, validationProblems } from '../domain/errors.ts';
import type { OrganizationId } from '../domain/ids.ts';
import { accessTokenOf } from '../http/guard.ts';
import { inputErrorsAt } from '../http/input-errors.ts';
import { takeAnyText } from '../http/json-body.ts';
import { problemBody } from '../http/problem.ts';
import { problemView } from '../http/schemas.ts';
import { asksForFresh } from './routes.ts';
import { verdictText, verdictView } from './verdict-view.ts';
import type { Verifier } from './verifier.ts';
import { batchEntry, batchOfAnything, batchRequest, entriesInBatch } from './verify-request.ts';

/** Room for as many entries as there may be, each with a key of any honest length and an IPv6 address. */
export const batchBodyLimitBytes = 262_144;

const batchView = z
  .object({ data: z.array(z.union([verdictView, problemView]).meta({ id: 'VerdictOrProblem' })) })
  .meta({
    id: 'VerifyBatchReply',
    description: "In the entries' order; a problem where an entry could not be answered.",
  });

/** Whether there are entries, and not too many. What is wrong with one of them is that one's affair. */
const batchValidator: FastifySchemaCompiler<z.ZodType> = (part) =>
  validatorCompiler(part.httpPart === 'body' ? { ...part, schema: batchOfAnything } : part);

/** For backends that ask about many keys at once, or report afterwards what they have let in by an earlier answer. */
export const batchRoutes: FastifyPluginAsyncZod<{ verifier: Verifier }> = async (app, { verifier }) => {
  app.setValidatorCompiler(batchValidator);
  takeAnyText(app);
  app.post(
    '/verify/batch',
    {
      bodyLimit: batchBodyLimitBytes,
      config: { access: { role: 'verifier', scope: 'read' }, problems: ['overloaded'] },
      schema: {
        operationId: 'verifyKeys',
        tags: ['Verification'],
        summary: 'Are these keys good, and may they do this?',
        description:
          `Up to ${entriesInBatch} entries in a body of up to ${batchBodyLimitBytes / 1024} KiB, each answered as verify does, in the ` +
          'same order. An entry that cannot be answered has a problem in its place and does not fail the others. ' +
          '`Cache-Control: no-cache` reads the records afresh.',
        body: batchRequest,
        response: { 200: batchView },
      },
    },
    async (request, reply) => {
      const callerOrganizationId = accessTokenOf(request).actsIn;
      const fresh = asksForFresh(request.headers['cache-control']);
      const answers = request.body.entries.map((entry, index) =>
        answerTo(entry, index, { verifier, callerOrganizationId, fresh, request }),
      );
      const text = `{"data":[${(await Promise.all(answers)).join(',')}]}`;
      // A string is sent as it is; the type says that this is meant.
      return reply.type('application/json; charset=utf-8').send(text as never);
    },
  );
};

interface Circumstances {
  verifier: Verifier;
  callerOrganizationId: OrganizationId | null;
  fresh: boolean;
  request: FastifyRequest;
}

/** @returns JSON of a verdict or of a problem */
async function answerTo(entry: unknown, index: number, by: Circumstances): Promise<string> {
  try {
    const { key, permission, ip, cost, uses } = readEntry(entry, index);
    const { callerOrganizationId, fresh } = by;
    return verdictText(
      await by.verifier.verify({
        key,
        wanted: { permission, ip },
        callerOrganizationId,
        cost,
        fresh,
        usesBefore: uses,
      }),
    );
  } catch (error) {
    const problem =
      error instanceof Problem ? error : (toProblem(error) ?? new Problem('internal', 'Something failed.'));
    if (problem.status >= 500) by.request.log.error({ reqId: by.request.id, err: error }, problem.detail);
    return by.request.server.secretText.mask(problemBody(problem, by.request.id));
  }
}

/** @throws Problem `validation_failed` */
function readEntry(entry: unknown, index: number): z.output<typeof batchEntry> {
  const parsed = batchEntry.safeParse(entry);
  if (parsed.success) return parsed.data;
  throw validationProblems(inputErrorsAt(`body.entries.${index}`, parsed.error.issues));
}
