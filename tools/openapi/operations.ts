import swagger from '@fastify/swagger';
import fastify, { type RouteOptions } from 'fastify';
import { jsonSchemaTransform, jsonSchemaTransformObject } from 'fastify-type-provider-zod';
import { type ProblemCode, problemKinds } from '../../src/domain/errors.ts';
import type { AccessRule } from '../../src/http/access.ts';
import { isBodyless } from '../../src/http/strict-routes.ts';
import {
  finishDocument,
  type JsonObject,
  problemResponses,
  replyHeadersMember,
  wrapReferences,
} from './finish-document.ts';

const tags = [
  { name: 'Rows', description: 'The settings page as data: each owner and permission with its at most two live keys.' },
  { name: 'Keys', description: 'API keys: create, look at, change, delete.' },
  { name: 'Partners', description: 'Outside teams and companies that were granted read, write or both.' },
  { name: 'Recovery', description: 'Asking an operator to bring back what an admin can no longer restore.' },
  { name: 'Webhooks', description: 'Telling other systems of what happens, signed by Standard Webhooks.' },
  { name: 'Verification', description: 'For backends: is this key good, and what may it do?' },
  { name: 'Rate limits', description: 'How much the keys of an organization may be used.' },
  { name: 'History', description: 'The append-only, hash-chained record of every change and every look.' },
  { name: 'Administration', description: 'Organizations and the access tokens that call this service.' },
  { name: 'About', description: 'The service itself.' },
];

const about = `Keeps the API keys of an organization: issues, reveals, deletes and verifies them, and proves who did what.

Calls need an access token. \`npm start\` writes the first tokens of an installation to \`credentials.json\`, and
\`latchkey bootstrap\` prints them once. Take \`adminToken\` for the management of keys and \`verifierToken\` for verification.
An admin makes further tokens with \`POST /v1/access-tokens\`. On this page, press Authorize and paste one into \`bearer\`.`;

/** The OpenAPI document of routes as the service declares them. Nothing of them is called. */
export async function documentOf(routes: readonly RouteOptions[], version: string): Promise<JsonObject> {
  const app = fastify({ exposeHeadRoutes: false });
  app.setValidatorCompiler(() => () => true);
  app.setSerializerCompiler(() => () => '');
  await app.register(swagger, {
    openapi: {
      openapi: '3.1.0',
      info: {
        title: 'Latchkey',
        version,
        description: about,
        contact: { name: 'The operators of this service' },
        license: { name: 'Apache-2.0', identifier: 'Apache-2.0' } as { name: string },
      },
      servers: [{ url: '/', description: 'The service that serves this document' }],
      tags,
      components: {
        securitySchemes: {
          bearer: { type: 'http', scheme: 'bearer', description: 'Authorization: Bearer <token>' },
          gatewayHeader: {
            type: 'apiKey',
            in: 'header',
            name: 'X-Latchkey-Token',
            description: "A verifier's token",
          },
          identityToken: {
            type: 'http',
            scheme: 'bearer',
            bearerFormat: 'JWT',
            description: "An access token of the company's identity provider, where one is set up: docs/oidc.md",
          },
          clientSecretBasic: {
            type: 'http',
            scheme: 'basic',
            description: "HTTP Basic as OAuth clients use it: any client id, and the verifier's token as the secret",
          },
          apiKeyHeader: { type: 'apiKey', in: 'header', name: 'X-API-Key', description: 'The same token' },
        },
        responses: problemResponses() as Record<string, never>,
      },
    },
    transform: (document) => {
      const transformed = jsonSchemaTransform(document);
      return { url: transformed.url, schema: describe(document.route, transformed.schema as JsonObject) };
    },
    transformObject: (document) => finishDocument(jsonSchemaTransformObject(document)) as never,
  });
  for (const { method, url, schema, config } of routes) {
    if (schema !== undefined && schema.hide !== true && method !== 'HEAD') {
      app.route({ method, url, schema, ...(config && { config }), handler: () => undefined });
    }
  }
  await app.ready();
  return app.swagger() as unknown as JsonObject;
}

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
  return {
    ...schema,
    ...(isBodyless(route) ? { body: undefined } : {}),
    ...headersOf(route, access),
    querystring: wrapReferences(schema['querystring']),
    description: said + who,
    security: securityOf(access),
  };
}

/** The headers that an operation takes, and with which its success is answered. */
function headersOf({ method, config = {} }: RouteOptions, access: AccessRule): JsonObject {
  const takesOperators = access !== 'public' && access.role === 'admin' && access.operator !== false;
  const isOnce = config.idempotencyKey === 'taken';
  const isPatch = config.entityTag === true && method === 'PATCH';
  const properties = {
    ...(takesOperators ? { 'Latchkey-Organization': organizationHeader } : {}),
    ...(isOnce ? { 'Idempotency-Key': idempotencyKeyHeader } : {}),
    ...(isPatch ? { 'If-Match': ifMatchHeader } : {}),
  };
  return {
    ...(Object.keys(properties).length === 0 ? {} : { headers: { type: 'object', properties } }),
    [replyHeadersMember]: { ...(config.entityTag ? entityTagReply : {}), ...(isOnce ? replayedReply : {}) },
  };
}

const organizationHeader = {
  type: 'string',
  description: 'For operators: the id of the organization in which to act.',
};

const idempotencyKeyHeader = {
  type: 'string',
  minLength: 1,
  maxLength: 255,
  pattern: '^[\\x20-\\x7e]+$',
  description:
    'For safe retries: within 24 hours the same request with the same key is not done again but answered as the first time. ' +
    'A reply with a plaintext in it is kept for 15 minutes, and not at all where keyReveal is never; after that the answer is ' +
    '409 `reply_gone`.',
};

const ifMatchHeader = {
  type: 'string',
  description: 'The ETag of the version that is to be changed, or several; another one is refused with 412.',
};

const entityTagReply = {
  ETag: { description: 'The version of the resource, for If-Match.', schema: { type: 'string' } },
};

const replayedReply = {
  'Idempotent-Replayed': {
    description: '`true` where this is the reply to an earlier request with the same Idempotency-Key.',
    schema: { type: 'string' },
  },
};

/** Only OAuth's schemes may name scopes; each description says which one is needed. */
function securityOf(access: AccessRule): JsonObject[] {
  if (access === 'public') return [];
  if (access.role === 'gateway') return [{ gatewayHeader: [] }];
  const takesPeople = access.role === 'admin' || access.role === 'any';
  const takesSecret = access.role === 'verifier' && access.clientSecret === true;
  return [
    { bearer: [] },
    { apiKeyHeader: [] },
    ...(takesPeople ? [{ identityToken: [] }] : []),
    // The third way, client_secret in the form, is a member of the body.
    ...(takesSecret ? [{ clientSecretBasic: [] }, {}] : []),
  ];
}

function whoMayCall(access: Exclude<AccessRule, 'public'>): string {
  switch (access.role) {
    case 'any':
      return 'For every live credential, API keys too.';
    case 'admin':
      if (access.operator === false) return `For admins with the scope ${access.scope}; not for operators.`;
      return `For admins with the scope ${access.scope}, and for operators that name an organization in Latchkey-Organization.`;
    case 'gateway':
      return 'For gateways with the token of a verifier that has the scope read.';
    case 'operator':
    case 'verifier':
      return `For ${access.role}s with the scope ${access.scope}.`;
  }
}

function problemsOf(route: RouteOptions, access: AccessRule): ProblemCode[] {
  if (access !== 'public' && access.role === 'gateway')
    return ['unauthorized', 'forbidden', 'rate_limited', 'unavailable'];
  const codes: ProblemCode[] = ['bad_request', 'internal', ...(route.config?.problems ?? [])];
  if (access === 'public' && route.config?.probe !== 'health') codes.push('rate_limited');
  if (access === 'public' && route.config?.probe === undefined) codes.push('overloaded');
  if (access !== 'public') codes.push('unauthorized', 'rate_limited', 'unavailable');
  if (access !== 'public' && access.role !== 'any') codes.push('forbidden');
  if (route.url.includes(':') || (access !== 'public' && access.role === 'admin')) codes.push('not_found');
  if (route.schema?.body !== undefined) codes.push('payload_too_large', 'unsupported_media_type');
  if (route.config?.idempotencyKey === 'taken')
    codes.push('idempotency_in_progress', 'idempotency_mismatch', 'reply_gone');
  if (route.config?.entityTag === true && route.method === 'PATCH') codes.push('precondition_failed');
  return codes;
}
