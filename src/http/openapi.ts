import swagger from '@fastify/swagger';
import swaggerUi from '@fastify/swagger-ui';
import fp from 'fastify-plugin';
import { z } from 'zod';
import type { ProblemCode } from '../domain/errors.ts';
import { readOpenApi } from '../lib/package.ts';
import { serveDocsFiles } from './docs-files.ts';
import { docsLook } from './docs-look.ts';
import { ungoverned } from './strict-routes.ts';

declare module 'fastify' {
  interface FastifyContextConfig {
    /** What this operation can be refused with, beside what its access and input already imply. */
    problems?: ProblemCode[];
  }
}

/**
 * For the pages under /docs, which load nothing from elsewhere. The library's own policy has `upgrade-insecure-requests`,
 * with which a browser asks for the scripts by https: where the service is reached by plain HTTP, and the page stays empty.
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

/** Sent as it is; only the document says that it is an object. */
const documentView: z.ZodType = z.record(z.string(), z.unknown());

/** Serves the document at /openapi.json, and its reader at /docs. */
export const openApi = fp(
  async (app) => {
    const document = JSON.parse(readOpenApi('3.1'));
    const text = JSON.stringify(document);
    await app.register(swagger, { mode: 'static', specification: { document } });
    await app.register(async (docs) => {
      docs.decorate(ungoverned, true);
      docs.addHook('onRequest', await serveDocsFiles('/docs/static/'));
      await docs.register(swaggerUi, {
        routePrefix: '/docs',
        staticCSP: docsPolicy,
        ...docsLook,
      });
    });
    app.get(
      '/openapi.json',
      {
        config: { access: 'public' },
        schema: {
          operationId: 'getOpenApi',
          tags: ['About'],
          summary: 'This document',
          response: { 200: documentView },
        },
      },
      async (_request, reply) => reply.type(jsonMediaType).send(text),
    );
  },
  { name: 'open-api', dependencies: ['strict-routes'] },
);
