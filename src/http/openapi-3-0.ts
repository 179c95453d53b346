import type { JsonObject } from './openapi-document.ts';

/**
 * The document by OpenAPI 3.0.3, for generators that know only that. Nothing is described anew: each thing that 3.1 says
 * in another way is translated, and what could not be is refused, so that the two never tell different stories.
 */

/** Words of JSON Schema that 3.0 does not know. None of the routes needs them. */
const untranslatable = [
  'const',
  'prefixItems',
  'patternProperties',
  'propertyNames',
  'unevaluatedProperties',
  'dependentRequired',
  'contentEncoding',
  'contentMediaType',
  'contains',
  'if',
  '$defs',
];

/** @throws Error where the document has what 3.0 cannot say */
export function toOpenApi30(document: unknown): unknown {
  const { info, ...rest } = translate(document, { at: '', document }) as JsonObject & { info: JsonObject };
  const license = { name: 'Apache-2.0', url: 'https://www.apache.org/licenses/LICENSE-2.0' };
  return { ...rest, openapi: '3.0.3', info: { ...info, license } };
}

interface Place {
  /** A path from the document's root. */
  at: string;
  document: unknown;
}

function translate(value: unknown, place: Place): unknown {
  const below = (name: string | number): Place => ({ ...place, at: `${place.at}/${name}` });
  if (Array.isArray(value)) return value.map((member, index) => translate(member, below(index)));
  if (typeof value !== 'object' || value === null) return value;
  const members = Object.entries(value).map(([name, member]): [string, unknown] => [
    name,
    translateMember(name, member, below(name)),
  ]);
  const translated = Object.fromEntries(members) as JsonObject;
  return isNameList(place.at) ? translated : asSchema30(translated, place);
}

function translateMember(name: string, member: unknown, place: Place): unknown {
  // An example is data and no schema.
  if (name === 'example') return member;
  // Only OAuth's schemes may name scopes in 3.0; each description says which one is needed.
  if (name === 'security' && Array.isArray(member)) return (member as JsonObject[]).map(withoutScopes);
  return translate(member, place);
}

function withoutScopes(requirement: JsonObject): JsonObject {
  return Object.fromEntries(Object.keys(requirement).map((scheme) => [scheme, []]));
}

/** Here names are whatever the API calls its things, such as a property named `type`. */
function isNameList(at: string): boolean {
  return /\/(properties|schemas|responses|headers|paths|content|securitySchemes)$/.test(at);
}

function asSchema30(schema: JsonObject, { at, document }: Place): JsonObject {
  const unknown = untranslatable.find((word) => word in schema);
  if (unknown !== undefined) throw new Error(`OpenAPI 3.0 has no «${unknown}», which is used at ${at}`);
  if (Array.isArray(schema['type'])) return withTypes(schema, schema['type'] as string[], at);
  if (Array.isArray(schema['anyOf'])) return withOptions(schema, schema['anyOf'] as JsonObject[], document);
  const { $ref, ...siblings } = schema;
  if ($ref === undefined || Object.keys(siblings).length === 0) return schema;
  // Beside a reference 3.0 reads nothing.
  return { allOf: [{ $ref }], ...siblings };
}

function withTypes(schema: JsonObject, types: string[], at: string): JsonObject {
  const [type, ...others] = types.filter((each) => each !== 'null');
  if (type === undefined || others.length > 0) throw new Error(`OpenAPI 3.0 has one type each, not those of ${at}`);
  return types.includes('null') ? asNullable({ ...schema, type }) : { ...schema, type };
}

function withOptions({ anyOf: _, ...said }: JsonObject, options: JsonObject[], document: unknown): JsonObject {
  const real = options.filter((option) => option['type'] !== 'null');
  const [only, ...others] = real;
  if (real.length === options.length) return { anyOf: options, ...said };
  if (only === undefined || others.length > 0) throw new Error('OpenAPI 3.0 has no null beside several other types');
  const { $ref, ...members } = only;
  if ($ref === undefined) return asNullable({ ...members, ...said });
  // `nullable` speaks about the type that stands beside it, and not about one behind a reference.
  return asNullable({ type: typeBehind(String($ref), document), allOf: [{ $ref }], ...members, ...said });
}

function typeBehind(reference: string, document: unknown): unknown {
  const names = reference.split('/').slice(1);
  const schema = names.reduce<unknown>((found, name) => (found as JsonObject)[name], document) as JsonObject;
  return schema['type'];
}

function asNullable(schema: JsonObject): JsonObject {
  const values = schema['enum'] as unknown[] | undefined;
  return { ...schema, ...(values === undefined ? {} : { enum: [...values, null] }), nullable: true };
}
