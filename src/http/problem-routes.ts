import type { FastifyPluginAsyncZod } from 'fastify-type-provider-zod';
import { z } from 'zod';
import { isProblemCode, Problem, type ProblemCode, problemCodes, problemKinds } from '../domain/errors.ts';
import { problemCodeSchema } from './schemas.ts';

const problemKindView = z
  .object({
    code: problemCodeSchema,
    type: z.string(),
    status: z.int(),
    title: z.string(),
    explanation: z.string(),
    remedy: z.string(),
  })
  .meta({
    id: 'ProblemKind',
    example: { code: 'row_full', type: '/problems/row_full', ...problemKinds.row_full },
  });

const problemKindList = z.object({ data: z.array(problemKindView) }).meta({ id: 'ProblemKindList' });

function toView(code: ProblemCode) {
  return { code, type: `/problems/${code}`, ...problemKinds[code] };
}

/** Serves the explanations that `type` in a problem document refers to. */
export const problemRoutes: FastifyPluginAsyncZod = async (app) => {
  app.get(
    '/problems/:code',
    {
      config: { access: 'public' },
      schema: {
        operationId: 'getProblemKind',
        tags: ['About'],
        summary: 'Get the explanation and remedy of a problem',
        params: z.object({ code: z.string().meta({ description: 'The code of the problem, such as `row_full`' }) }),
        response: { 200: problemKindView },
      },
    },
    async (request) => {
      const { code } = request.params;
      if (!isProblemCode(code))
        throw new Problem('not_found', `There is no problem with the code ${code}. See /problems for all codes.`);
      return toView(code);
    },
  );

  app.get(
    '/problems',
    {
      config: { access: 'public' },
      schema: {
        operationId: 'listProblemKinds',
        tags: ['About'],
        summary: 'List all problems',
        response: { 200: problemKindList },
      },
    },
    async () => ({ data: problemCodes.map(toView) }),
  );
};
