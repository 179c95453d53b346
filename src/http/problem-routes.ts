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

/** What `type` in a problem document points to. */
export const problemRoutes: FastifyPluginAsyncZod = async (app) => {
  app.get(
    '/problems/:code',
    {
      config: { access: 'public' },
      schema: {
        operationId: 'getProblemKind',
        tags: ['About'],
        summary: 'What a problem means and what to do about it',
        params: z.object({ code: z.string().meta({ description: 'A code, such as `row_full`' }) }),
        response: { 200: problemKindView },
      },
    },
    async (request) => {
      const { code } = request.params;
      if (!isProblemCode(code)) throw new Problem('not_found', `There is no problem with the code ${code}.`);
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
        summary: 'Every problem that Latchkey answers with',
        response: { 200: problemKindList },
      },
    },
    async () => ({ data: problemCodes.map(toView) }),
  );
};
