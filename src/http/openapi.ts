import swagger from '@fastify/swagger';
import swaggerUi from '@fastify/swagger-ui';
import fp from 'fastify-plugin';
import { z } from 'zod';
import type { ProblemCode } from '../domain/errors.ts';
import { readOpenApi } from '../lib/package.ts';
import { serveDocsFiles } from './docs-files.ts';
import { docsTheme } from './docs-theme.ts';
import { libraryRoutes } from './strict-routes.ts';

declare module 'fastify' {
  interface FastifyContextConfig {
    /** Problems that this operation can return, in addition to those that its access and input imply. */
    problems?: ProblemCode[];
    /** Headers of the success, as in OpenAPI, in addition to those that other settings imply. */
    replyHeaders?: Record<string, { description: string; schema: object }>;
  }
}

/**
 * The content security policy of /docs. The library's own policy has `upgrade-insecure-requests`, which breaks the page on
 * installations that are reached by plain HTTP.
 */
const docsPolicy = {
  'default-src': "'self'",
  'base-uri': "'none'",
  'font-src': "'self' data:",
  'frame-ancestors': "'none'",
  'img-src': "'self' data:",
  'object-src': "'none'",
};

const jsonMediaType = 'application/json; charset=utf-8';

const documentView: z.ZodType = z.record(z.string(), z.unknown());

/** Serves the OpenAPI document at /openapi.json, and an HTML page for it at /docs. */
export const openApi = fp(
  async (app) => {
    const document = JSON.parse(readOpenApi('3.1'));
    // One buffer for all replies: clients that do not read would otherwise each hold a copy of it.
    const bytes = Buffer.from(JSON.stringify(document));
    await app.register(swagger, { mode: 'static', specification: { document } });
    await app.register(async (docs) => {
      docs.decorate(libraryRoutes, true);
      docs.addHook('onRequest', await serveDocsFiles('/docs/static/'));
      docs.addHook('onRequest', (request, reply, done) => {
        if (request.routeOptions.url === '/docs/json') reply.type(jsonMediaType).send(bytes);
        else done();
      });
      await docs.register(swaggerUi, {
        routePrefix: '/docs',
        staticCSP: docsPolicy,
        ...docsTheme,
      });
    });
    app.get(
      '/openapi.json',
      {
        config: { access: 'public' },
        schema: {
          operationId: 'getOpenApi',
          tags: ['About'],
          summary: 'Get this document',
          response: { 200: documentView },
        },
      },
      async (_request, reply) => reply.type(jsonMediaType).send(bytes),
    );
  },
  { name: 'open-api', dependencies: ['strict-routes'] },
);
