import swagger from '@fastify/swagger';
import swaggerUi from '@fastify/swagger-ui';
import type { FastifyInstance, RouteOptions } from 'fastify';
import fp from 'fastify-plugin';
import { jsonSchemaTransform, jsonSchemaTransformObject } from 'fastify-type-provider-zod';
import { z } from 'zod';
import { type ProblemCode, problemKinds } from '../core/errors.ts';
import type { AccessRule } from './access.ts';
import { problemMediaType } from './problem.ts';
import { ungoverned } from './strict-routes.ts';

declare module 'fastify' {
  interface FastifyContextConfig {
    /** What this operation can be refused with, beside what its access and input already imply. */
    problems?: ProblemCode[];
  }
}

type JsonObject = Record<string, unknown>;

const tags = [
  { name: 'Rows', description: 'The settings page as data: each owner and permission with its at most two live keys.' },
  { name: 'Keys', description: 'API keys: create, look at, change, delete.' },
  { name: 'Partners', description: 'Outside teams and companies that were granted read, write or both.' },
  { name: 'Verification', description: 'For backends: is this key good, and what may it do?' },
  { name: 'Rate limits', description: 'How much the keys of an organization may be used.' },
  { name: 'History', description: 'The append-only, hash-chained record of every change and every look.' },
  { name: 'Administration', description: 'Organizations and the access tokens that call this service.' },
  { name: 'About', description: 'The service itself.' },
];

/** The document at /openapi.json, made from the routes themselves, and its reader at /docs. */
export const openApi = fp<{ version: string }>(
  async (app, { version }) => {
    await app.register(swagger, {
      openapi: {
        openapi: '3.1.0',
        info: {
          title: 'Latchkey',
          version,
          description:
            'Keeps the API keys of an organization: issues, shows, deletes and verifies them, and proves who did what.',
          license: { name: 'Apache-2.0', identifier: 'Apache-2.0' } as { name: string },
        },
        servers: [{ url: '/', description: 'The service that serves this document' }],
        tags,
        components: {
          securitySchemes: {
            bearer: { type: 'http', scheme: 'bearer', description: 'Authorization: Bearer <token>' },
            apiKeyHeader: { type: 'apiKey', in: 'header', name: 'X-API-Key', description: 'The same token' },
          },
          responses: problemResponses() as Record<string, never>,
        },
      },
      transform: (document) => {
        const transformed = jsonSchemaTransform(document);
        const { route } = document;
        if (document.schema?.hide === true) return { url: transformed.url, schema: { hide: true } };
        return { url: transformed.url, schema: describe(route, transformed.schema as JsonObject) };
      },
      transformObject: (document) => finish(jsonSchemaTransformObject(document)) as never,
    });
    await app.register(async (docs) => {
      docs.decorate(ungoverned, true);
      await docs.register(swaggerUi, { routePrefix: '/docs', uiConfig: { deepLinking: true }, staticCSP: true });
    });
    app.get(
      '/openapi.json',
      {
        config: { access: 'public' },
        schema: {
          operationId: 'getOpenApi',
          tags: ['About'],
          summary: 'This document',
          response: { 200: z.record(z.string(), z.unknown()) },
        },
      },
      async () => app.swagger(),
    );
  },
  { name: 'open-api', dependencies: ['strict-routes'] },
);

/** Adds to an operation what its declared access implies: security, who may call, and every problem that can come. */
function describe(route: RouteOptions, schema: JsonObject): JsonObject {
  const access = route.config?.access;
  if (access === undefined) throw new Error(`${String(route.method)} ${route.url} declares no config.access`);
  const who = access === 'public' ? 'No credential is needed.' : whoMayCall(access);
  const said = typeof schema['description'] === 'string' ? `${schema['description']}\n\n` : '';
  const response = schema['response'] as JsonObject;
  const problems = [...new Set(problemsOf(route, access))].map((code) => problemKinds[code].status);
  for (const status of [...new Set(problems)].sort()) {
    response[String(status)] ??= { $ref: `#/components/responses/Problem${status}` };
  }
  return { ...schema, description: said + who, security: securityOf(access) };
}

function securityOf(access: AccessRule): JsonObject[] {
  if (access === 'public') return [];
  const scopes = access.role === 'any' ? [] : [`${access.role}:${access.scope}`];
  return [{ bearer: scopes }, { apiKeyHeader: scopes }];
}

function whoMayCall(access: Exclude<AccessRule, 'public'>): string {
  switch (access.role) {
    case 'any':
      return 'For every live credential, API keys too.';
    case 'admin':
      if (access.operator === false) return `For admins with the scope ${access.scope}; not for operators.`;
      return `For admins with the scope ${access.scope}, and for operators that name an organization in Latchkey-Organization.`;
    case 'operator':
    case 'verifier':
      return `For ${access.role}s with the scope ${access.scope}.`;
  }
}

function problemsOf(route: RouteOptions, access: AccessRule): ProblemCode[] {
  const codes: ProblemCode[] = ['bad_request', 'internal', ...(route.config?.problems ?? [])];
  if (access !== 'public') codes.push('unauthorized', 'rate_limited', 'unavailable');
  if (access !== 'public' && access.role !== 'any') codes.push('forbidden');
  if (route.url.includes(':') || (access !== 'public' && access.role === 'admin')) codes.push('not_found');
  if (route.schema?.body !== undefined) codes.push('payload_too_large', 'unsupported_media_type');
  return codes;
}

/** One response component for each status, since a status is what OpenAPI tells replies apart by. */
function problemResponses(): Record<string, JsonObject> {
  const byStatus = new Map<number, ProblemCode[]>();
  for (const [code, { status }] of Object.entries(problemKinds) as [ProblemCode, { status: number }][]) {
    byStatus.set(status, [...(byStatus.get(status) ?? []), code]);
  }
  return Object.fromEntries(
    [...byStatus].map(([status, codes]) => [`Problem${status}`, problemResponse(status, codes)]),
  );
}

function problemResponse(status: number, codes: ProblemCode[]): JsonObject {
  const [first] = codes;
  if (first === undefined) throw new Error(`status ${status} has no problem`);
  const { title, explanation } = problemKinds[first];
  return {
    description: codes.map((code) => `\`${code}\`: ${problemKinds[code].explanation}`).join('\n\n'),
    headers: {
      'X-Request-Id': { description: 'Under this id the log has the cause.', schema: { type: 'string' } },
      ...(status === 429 || status === 503
        ? { 'Retry-After': { description: 'Seconds to wait.', schema: { type: 'integer' } } }
        : {}),
    },
    content: {
      [problemMediaType]: {
        schema: { $ref: '#/components/schemas/Problem' },
        example: {
          type: `/problems/${first}`,
          title,
          status,
          detail: explanation,
          code: first,
          requestId: '019abf6e-7c2e-7f4e-9a61-0f0f6d5b9c11',
        },
      },
    },
  };
}

/** Drops what nothing refers to: the type provider writes an input and an output form of every named schema. */
function finish(document: unknown): unknown {
  const { components, ...rest } = document as { components: { schemas: JsonObject; responses: JsonObject } };
  const kept = { ...components };
  kept.responses = referenced(components.responses, 'responses', JSON.stringify(rest));
  for (;;) {
    const texts = JSON.stringify([rest, kept.responses, kept.schemas]);
    const schemas = referenced(kept.schemas, 'schemas', texts);
    if (Object.keys(schemas).length === Object.keys(kept.schemas).length) break;
    kept.schemas = schemas;
  }
  return { ...rest, components: kept };
}

function referenced(components: JsonObject, kind: string, inTexts: string): JsonObject {
  return Object.fromEntries(
    Object.entries(components).filter(([name]) => inTexts.includes(`"#/components/${kind}/${name}"`)),
  );
}

/** The document as the repository keeps it: members in a stable order, so that a diff shows what changed. */
export function openApiText(app: FastifyInstance): string {
  return `${JSON.stringify(app.swagger(), null, 2)}\n`;
}
