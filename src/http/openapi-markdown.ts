import type { JsonObject } from './openapi-document.ts';

/** The OpenAPI document for people: every operation with its parameters, and every shape with its members. */

interface Schema extends JsonObject {
  $ref?: string;
  type?: string | string[];
  enum?: unknown[];
  format?: string;
  description?: string;
  properties?: Record<string, Schema>;
  required?: string[];
  items?: Schema;
  anyOf?: Schema[];
  oneOf?: Schema[];
}

interface Operation {
  summary: string;
  description: string;
  tags: string[];
  parameters?: Array<{ name: string; in: string; required?: boolean; description?: string; schema: Schema }>;
  requestBody?: { required?: boolean; content: Record<string, { schema: Schema }> };
  responses: Record<string, { content?: Record<string, { schema: Schema }> }>;
}

interface Document {
  tags: Array<{ name: string; description: string }>;
  paths: Record<string, Record<string, Operation>>;
  components: { schemas: Record<string, Schema> };
}

export function toMarkdown(document: unknown): string {
  const { tags, paths, components } = document as Document;
  const operations = Object.entries(paths).flatMap(([path, methods]) =>
    Object.entries(methods).map(([method, operation]) => ({ name: `${method.toUpperCase()} ${path}`, operation })),
  );
  const parts = tags.flatMap(({ name, description }) => {
    const own = operations.filter(({ operation }) => operation.tags.includes(name));
    return [`## ${name}`, description, ...own.flatMap((each) => describeOperation(each.name, each.operation))];
  });
  const shapes = Object.entries(components.schemas).flatMap(([name, schema]) => [
    `### ${name}`,
    ...(schema.description === undefined ? [] : [schema.description]),
    shapeOf(schema),
  ]);
  const heading = ['# API', 'Made from the routes by `npm run openapi`; do not edit. `?` marks what may be left out.'];
  return `${[...heading, ...parts, '## Shapes', ...shapes].join('\n\n')}\n`;
}

function describeOperation(name: string, operation: Operation): string[] {
  const success = Object.entries(operation.responses).find(([status]) => status.startsWith('2'));
  const reply = success?.[1].content?.['application/json']?.schema;
  const refusals = Object.keys(operation.responses).filter((status) => status >= '400');
  const [body] = Object.values(operation.requestBody?.content ?? {});
  return [
    `### \`${name}\``,
    operation.summary,
    operation.description,
    ...parametersTable(operation),
    ...(body === undefined
      ? []
      : [`Body: ${typeOf(body.schema)}${operation.requestBody?.required === false ? ', or none' : ''}.`]),
    `Replies ${success?.[0]}${reply === undefined ? '' : `: ${typeOf(reply)}`}. Refuses with ${refusals.join(', ')}.`,
  ];
}

function parametersTable({ parameters = [] }: Operation): string[] {
  if (parameters.length === 0) return [];
  const rows = parameters.map(
    (parameter) =>
      `| \`${parameter.name}\`${parameter.required ? '' : '?'} | ${parameter.in} | ${typeOf(parameter.schema)} | ${parameter.description ?? ''} |`,
  );
  return [['| parameter | in | type | |', '| --- | --- | --- | --- |', ...rows].join('\n')];
}

function shapeOf(schema: Schema): string {
  return schema.properties === undefined ? `${typeOf(schema)}.` : membersTable(schema);
}

function membersTable(schema: Schema): string {
  const rows = Object.entries(schema.properties ?? {}).map(
    ([name, member]) =>
      `| \`${name}\`${schema.required?.includes(name) ? '' : '?'} | ${typeOf(member)} | ${member.description ?? ''} |`,
  );
  return ['| member | type | |', '| --- | --- | --- |', ...rows].join('\n');
}

function typeOf(schema: Schema): string {
  if (schema.$ref !== undefined) {
    const name = schema.$ref.split('/').at(-1) ?? '';
    return `[${name}](#${name.toLowerCase()})`;
  }
  const options = schema.anyOf ?? schema.oneOf;
  if (options !== undefined) return options.map(typeOf).join(' or ');
  if (schema.enum !== undefined) return schema.enum.map((value) => `\`${String(value)}\``).join(', ');
  if (schema.items !== undefined) return `list of ${typeOf(schema.items)}`;
  if (schema.properties !== undefined) {
    const members = Object.entries(schema.properties).map(([name, member]) => `${name}: ${typeOf(member)}`);
    return `{ ${members.join(', ')} }`;
  }
  const types = [schema.type ?? 'any'].flat().join(' or ');
  return schema.format === undefined ? types : `${types} (${schema.format})`;
}
