import { type JsonObject, withoutUnreferenced } from './finish-document.ts';

/**
 * Translates the document to OpenAPI 3.0.3, for generators that only support that version. Fails for anything that
 * cannot be translated, so that the two documents never differ in meaning.
 */

/** Keywords of JSON Schema that 3.0 does not support. No route needs them. */
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

/** @throws Error if the document contains what 3.0 cannot express */
export function toOpenApi30(document: unknown): unknown {
  const nullableEnums: JsonObject = {};
  const translated = translate(document, { at: '', document, nullableEnums }) as Document30;
  const { info, components, ...rest } = translated;
  const license = { name: 'Apache-2.0', url: 'https://www.apache.org/licenses/LICENSE-2.0' };
  const schemas = { ...components.schemas, ...nullableEnums };
  return {
    ...rest,
    components: withoutUnreferenced({ ...components, schemas }, rest),
    openapi: '3.0.3',
    info: { ...info, license },
  };
}

interface Document30 extends JsonObject {
  info: JsonObject;
  components: { schemas: JsonObject; responses: JsonObject };
}

interface Place {
  /** A path from the document's root. */
  at: string;
  document: unknown;
  /** Enums that may be null somewhere, by name. Filled during the translation. */
  nullableEnums: JsonObject;
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
  // An example is data, not a schema.
  if (name === 'example') return member;
  return translate(member, place);
}

/** Here names are names of the API, such as a property named `type`. */
function isNameList(at: string): boolean {
  return /\/(properties|schemas|responses|headers|paths|content|securitySchemes)$/.test(at);
}

function asSchema30(schema: JsonObject, place: Place): JsonObject {
  const { at } = place;
  const unknown = untranslatable.find((word) => word in schema);
  if (unknown !== undefined) throw new Error(`OpenAPI 3.0 does not support ${unknown}, which is used at ${at}`);
  if (Array.isArray(schema['type'])) return withTypes(schema, schema['type'] as string[], at);
  if (Array.isArray(schema['anyOf'])) return withOptions(schema, schema['anyOf'] as JsonObject[], place);
  const { $ref, ...siblings } = schema;
  if ($ref === undefined || Object.keys(siblings).length === 0) return schema;
  return withSiblings(String($ref), siblings);
}

/** 3.0 ignores everything beside a reference. */
function withSiblings($ref: string, siblings: JsonObject): JsonObject {
  return Object.keys(siblings).length === 0 ? { $ref } : { allOf: [{ $ref }], ...siblings };
}

function withTypes(schema: JsonObject, types: string[], at: string): JsonObject {
  const [type, ...others] = types.filter((each) => each !== 'null');
  if (type === undefined || others.length > 0)
    throw new Error(`OpenAPI 3.0 supports one type per schema, unlike ${at}`);
  return types.includes('null') ? asNullable({ ...schema, type }) : { ...schema, type };
}

function withOptions({ anyOf: _, ...said }: JsonObject, options: JsonObject[], place: Place): JsonObject {
  const real = options.filter((option) => option['type'] !== 'null');
  const [only, ...others] = real;
  if (real.length === options.length) return { anyOf: options, ...said };
  if (only === undefined || others.length > 0)
    throw new Error('OpenAPI 3.0 does not support null beside several other types');
  const { $ref, ...members } = only;
  if ($ref === undefined) return asNullable({ ...members, ...said });
  const named = schemaBehind(String($ref), place.document);
  if (named['enum'] !== undefined) {
    // Generators lose an enum behind `allOf` beside a type, so it gets a second form that may be null.
    const name = `Nullable${String($ref).split('/').at(-1)}`;
    place.nullableEnums[name] = asNullable(named);
    return withSiblings(`#/components/schemas/${name}`, { ...members, ...said });
  }
  // `nullable` refers to the type beside it, not to one behind a reference.
  return asNullable({ type: named['type'], allOf: [{ $ref }], ...members, ...said });
}

function schemaBehind(reference: string, document: unknown): JsonObject {
  const names = reference.split('/').slice(1);
  return names.reduce<unknown>((found, name) => (found as JsonObject)[name], document) as JsonObject;
}

function asNullable(schema: JsonObject): JsonObject {
  const values = schema['enum'] as unknown[] | undefined;
  return { ...schema, ...(values === undefined ? {} : { enum: [...values, null] }), nullable: true };
}
