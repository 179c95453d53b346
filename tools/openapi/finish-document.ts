import { isDeepStrictEqual } from 'node:util';
import { type ProblemCode, problemKinds } from '../../src/domain/errors.ts';
import { problemMediaType } from '../../src/http/problem.ts';

/** Completes and corrects the generated OpenAPI document in one pass. */

export type JsonObject = Record<string, unknown>;

/** The temporary member with the headers of an operation's success. */
export const replyHeadersMember = 'x-reply-headers';

/** The temporary member with the parameter for all names that a query does not list. */
export const otherParametersMember = 'x-other-parameters';

/** With style form, each member of the object becomes a parameter of its own name. Undefined if a query lists all names. */
export function otherParametersOf(query: unknown): JsonObject | undefined {
  const { additionalProperties: others } = (query ?? {}) as { additionalProperties?: JsonObject | false };
  if (typeof others !== 'object' || others['title'] === undefined) return undefined;
  const { title: name, description, ...text } = others;
  // Without a default, a console would send invented names.
  const schema = { type: 'object', additionalProperties: text, default: {} };
  return { name, in: 'query', required: false, description, style: 'form', explode: true, schema };
}

interface Parameter extends JsonObject {
  schema: JsonObject & { allOf?: JsonObject[] };
}

interface Operation {
  parameters?: Parameter[];
  [replyHeadersMember]?: JsonObject;
  [otherParametersMember]?: Parameter;
  requestBody?: { required?: boolean; content: Record<string, { schema: JsonObject }> };
  responses: Record<string, JsonObject>;
}

interface Document {
  paths: Record<string, Record<string, Operation>>;
  components: { schemas: JsonObject; responses: JsonObject };
}

export function finishDocument(generated: unknown): unknown {
  const { components, ...rest } = tidySchemas(generated) as Document;
  for (const operation of Object.values(rest.paths).flatMap((path) => Object.values(path))) finishOperation(operation);
  return withOneNameEach({ ...rest, components: withoutUnreferenced(components, rest) });
}

function finishOperation(operation: Operation): void {
  const { [otherParametersMember]: others } = operation;
  if (others !== undefined) operation.parameters = [...(operation.parameters ?? []), others];
  delete operation[otherParametersMember];
  for (const parameter of operation.parameters ?? []) finishParameter(parameter);
  for (const [status, response] of Object.entries(operation.responses)) {
    operation.responses[status] = finishResponse(status, response, operation[replyHeadersMember] ?? {});
  }
  delete operation[replyHeadersMember];
  for (const media of Object.values(operation.requestBody?.content ?? {})) {
    const { anyOf, ...said } = media.schema as { anyOf?: JsonObject[] };
    if (anyOf?.length !== 2 || anyOf[1]?.['type'] !== 'null') continue;
    // A body that may be null may also be left out, which is what a client would do.
    media.schema = { ...anyOf[0], ...said };
    if (operation.requestBody !== undefined) operation.requestBody.required = false;
  }
}

/**
 * The generator ignores everything beside a reference, so a default and the like stands beside `allOf`.
 * @param query the query parameters of an operation, as JSON Schema
 */
export function wrapReferences(query: unknown): unknown {
  const { properties, ...rest } = (query ?? {}) as { properties?: Record<string, JsonObject> };
  if (properties === undefined) return query;
  const wrapped = Object.entries(properties).map(([name, { $ref, ...said }]): [string, JsonObject] => [
    name,
    $ref === undefined ? said : { ...said, allOf: [{ $ref }] },
  ]);
  return { ...rest, properties: Object.fromEntries(wrapped) };
}

/** A console sends a parameter's example by default, so a filter would match nothing and an id would be unknown. */
function finishParameter(parameter: Parameter): void {
  delete parameter['example'];
  const { example: _, allOf, ...said } = parameter.schema;
  parameter.schema = allOf === undefined ? said : { ...said, ...allOf[0] };
}

/** Turns problems into response components, and adds the headers of a success. */
function finishResponse(status: string, response: JsonObject, ownHeaders: JsonObject): JsonObject {
  const content = response['content'] as Record<string, { schema: JsonObject }> | undefined;
  const [media] = Object.values(content ?? {});
  const reference = media?.schema['$ref'];
  if (typeof reference === 'string' && reference.startsWith('#/components/responses/')) return { $ref: reference };
  const location = { Location: { description: 'The path of the created resource.', schema: { type: 'string' } } };
  return {
    ...response,
    description: status === '201' ? 'Created.' : 'Done.',
    headers: { ...requestIdHeader, ...(status === '201' ? location : {}), ...ownHeaders },
  };
}

const requestIdHeader = {
  'X-Request-Id': { description: 'The id of the request in the log.', schema: { type: 'string' } },
};

/** Removes what zod adds by itself: bounds of safe integers, patterns beside formats. */
function tidySchemas(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(tidySchemas);
  if (typeof value !== 'object' || value === null) return value;
  const members = Object.entries(value).filter(([name, member]) => !isNoise(name, member, value as JsonObject));
  return Object.fromEntries(members.map(([name, member]) => [name, tidySchemas(member)]));
}

function isNoise(name: string, member: unknown, schema: JsonObject): boolean {
  switch (name) {
    case 'pattern':
      return typeof member === 'string' && (schema['format'] !== undefined || schema['type'] === 'integer');
    case 'enum':
      return schema['type'] === 'boolean';
    case 'minimum':
      return member === Number.MIN_SAFE_INTEGER;
    case 'maximum':
      return member === Number.MAX_SAFE_INTEGER;
    case 'propertyNames':
      return (member as JsonObject)['type'] === 'string';
    default:
      return false;
  }
}

/**
 * The type provider writes an input and an output form of every named schema; unused ones are removed. The rest is
 * sorted by name, otherwise the order would depend on the order of imports.
 */
export function withoutUnreferenced(components: Document['components'], rest: unknown): Document['components'] {
  const kept = { ...components, responses: referenced(components.responses, 'responses', JSON.stringify(rest)) };
  for (;;) {
    const texts = JSON.stringify([rest, kept.responses, kept.schemas]);
    const schemas = referenced(kept.schemas, 'schemas', texts);
    if (Object.keys(schemas).length === Object.keys(kept.schemas).length) return kept;
    kept.schemas = schemas;
  }
}

/**
 * The type provider names an input form `NameInput` and an output form `Name`. Here each name is used in one direction
 * only, or both forms are equal. @throws Error if they differ
 */
function withOneNameEach({ components, ...rest }: Document): Document {
  const ends = /(?<=#\/components\/schemas\/[A-Za-z0-9]+)Input(?=")/g;
  const renamed = (value: unknown) => JSON.parse(JSON.stringify(value).replaceAll(ends, ''));
  const schemas: JsonObject = {};
  for (const [name, schema] of Object.entries(components.schemas)) {
    const shortName = name.replace(/Input$/, '');
    const known = schemas[shortName];
    const own = withoutDefaults(renamed(schema));
    if (known !== undefined && !isDeepStrictEqual(known, own)) {
      throw new Error(`The input and output forms of schema ${shortName} differ. Give one of the two another id.`);
    }
    schemas[shortName] = own;
  }
  return { ...renamed(rest), components: { ...renamed(components), schemas } };
}

/** Generators treat a member with a default as always present, so the description states the default. */
function withoutDefaults(schema: JsonObject): JsonObject {
  const { properties, ...rest } = schema as { properties?: Record<string, JsonObject> };
  if (properties === undefined) return schema;
  const members = Object.entries(properties).map(([name, { default: _, ...member }]) => [name, member]);
  return { ...rest, properties: Object.fromEntries(members) };
}

function referenced(components: JsonObject, kind: string, inTexts: string): JsonObject {
  return Object.fromEntries(
    Object.entries(components)
      .filter(([name]) => inTexts.includes(`"#/components/${kind}/${name}"`))
      .sort(([one], [other]) => (one < other ? -1 : 1)),
  );
}

/** One response component for each status, because OpenAPI distinguishes replies by status. */
export function problemResponses(): Record<string, JsonObject> {
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
  if (first === undefined) throw new Error(`Status ${status} has no problem`);
  const { title, explanation } = problemKinds[first];
  return {
    description: codes.map((code) => `\`${code}\`: ${problemKinds[code].explanation}`).join('\n\n'),
    headers: {
      ...requestIdHeader,
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
          traceId: '019abf6e7c2e7f4e9a610f0f6d5b9c11',
        },
      },
    },
  };
}
