import swagger from '@fastify/swagger';
import fastify, { type RouteOptions } from 'fastify';
import { jsonSchemaTransform, jsonSchemaTransformObject } from 'fastify-type-provider-zod';
import { type ProblemCode, problemKinds } from '../../src/domain/errors.ts';
import type { AccessRule } from '../../src/http/access.ts';
import { isBodyless } from '../../src/http/strict-routes.ts';
import {
  finishDocument,
  type JsonObject,
  otherParametersMember,
  otherParametersOf,
  problemResponses,
  replyHeadersMember,
  wrapReferences,
} from './finish-document.ts';

const tags = [
  {
    name: 'Rows',
    description: 'The key rows: each owner and permission with its keys, at most two of which are live.',
  },
  { name: 'Keys', description: 'API keys: create, list, reveal, change, rotate, delete.' },
  { name: 'Claims', description: 'Handing a key over once, so that no admin sees or forwards it.' },
  { name: 'Partners', description: 'Outside teams and companies with the permission read, write or both.' },
  { name: 'Recovery', description: 'Requests to an operator to restore what an admin can no longer restore.' },
  { name: 'Webhooks', description: 'Notifications of events to other systems, signed by Standard Webhooks.' },
  { name: 'Verification', description: 'For backends: whether a key is valid, and what it permits.' },
  { name: 'Leaks', description: 'Reports of keys that were found in public places.' },
  {
    name: 'Self-service',
    description: 'For the holders of API keys, if their organization allows it: rotate or revoke the key with itself.',
  },
  { name: 'Rate limits', description: 'The rate limits of the keys of an organization.' },
  { name: 'History', description: 'The append-only, hash-chained record of every change and every reveal.' },
  { name: 'Administration', description: 'Organizations, and the access tokens for this service.' },
  { name: 'About', description: 'The service itself.' },
];

const about = `Manages the API keys of organizations: creates, reveals, rotates, deletes and verifies keys, and records every change and reveal.

Calls need an access token. \`npm start\` writes the first tokens of an installation to \`credentials.json\`, and
\`latchkey bootstrap\` prints them once. Use \`adminToken\` to manage keys and \`verifierToken\` to verify them. An admin creates
further tokens with \`POST /v1/access-tokens\`. On this page, press Authorize and paste a token into \`bearer\`.`;

/** The OpenAPI document of the declared routes. No route is called. */
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
            description: "An access token of the company's identity provider, if one is configured: docs/oidc.md",
          },
          clientSecretBasic: {
            type: 'http',
            scheme: 'basic',
            description: "HTTP Basic as in OAuth: any client id, and the verifier's token as the secret",
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

/** Adds what an operation's declared access implies: security, the callers, and every possible problem. */
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
    [otherParametersMember]: otherParametersOf(schema['querystring']),
    description: said + who,
    security: securityOf(access),
  };
}

/** The request headers of an operation, and the headers of its success. */
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
    [replyHeadersMember]: {
      ...(config.entityTag ? entityTagReply : {}),
      ...(isOnce ? replayedReply : {}),
      ...config.replyHeaders,
    },
  };
}

const organizationHeader = {
  type: 'string',
  description: 'For operators: the id of the organization of this request.',
};

const idempotencyKeyHeader = {
  type: 'string',
  minLength: 1,
  maxLength: 255,
  pattern: '^[\\x20-\\x7e]+$',
  description:
    'For safe retries: within 24 hours, the same request with the same key is not executed again and gets the first reply. ' +
    'A reply with a plaintext is stored for 15 minutes, or not at all if keyReveal is never. After that the reply is ' +
    '409 `reply_gone`.',
};

const ifMatchHeader = {
  type: 'string',
  description: 'The ETag of the version to change, or several. Another version is rejected with 412.',
};

const entityTagReply = {
  ETag: { description: 'The version of the resource, for If-Match.', schema: { type: 'string' } },
};

const replayedReply = {
  'Idempotent-Replayed': {
    description: '`true` if this is the reply to an earlier request with the same Idempotency-Key.',
    schema: { type: 'string' },
  },
};

/** Only OAuth schemes may list scopes, so each description states the needed one. */
function securityOf(access: AccessRule): JsonObject[] {
  if (access === 'public') return [];
  if (access.role === 'gateway') return [{ gatewayHeader: [] }];
  const takesPeople = access.role === 'admin' || access.role === 'any';
  const isOptional = access.role === 'admin' && access.anonymous === true;
  const takesSecret = access.role === 'verifier' && access.clientSecret === true;
  return [
    { bearer: [] },
    { apiKeyHeader: [] },
    ...(takesPeople ? [{ identityToken: [] }] : []),
    // The third way, client_secret in the form, is a member of the body.
    ...(takesSecret ? [{ clientSecretBasic: [] }] : []),
    ...(takesSecret || isOptional ? [{}] : []),
  ];
}

function whoMayCall(access: Exclude<AccessRule, 'public'>): string {
  switch (access.role) {
    case 'any':
      return 'For every live credential, API keys too.';
    case 'api_key':
      return 'For API keys, if selfService of their organization is true.';
    case 'admin':
      if (access.anonymous === true)
        return `No credential is needed. The reply is informative for admins with the scope ${access.scope}, and for operators.`;
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
