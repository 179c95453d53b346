import { readFileSync } from 'node:fs';
import t from 'tap';
import { describeApi } from '../src/describe-api.ts';
import { historyActions } from '../src/history/events.ts';
import { toOpenApi30 } from '../src/http/openapi-3-0.ts';
import { toMarkdown } from '../src/http/openapi-markdown.ts';
import type { Json } from './support/app.ts';
import { startService } from './support/app.ts';

const committed = readFileSync('openapi/openapi.json', 'utf8');
const document: Json = JSON.parse(committed);

const operations: Array<[name: string, operation: Json]> = Object.entries(document.paths).flatMap(([path, item]) =>
  Object.entries(item as Json).map(([method, operation]): [string, Json] => [`${method} ${path}`, operation]),
);

t.test('the committed document is what the routes say', async (t) => {
  t.equal(committed, await describeApi(), 'if the change is meant: npm run openapi');
});

t.test('the pages for people say the same', async (t) => {
  t.equal(readFileSync('docs/api.md', 'utf8'), toMarkdown(document), 'if the change is meant: npm run openapi');
  const history = readFileSync('docs/history.md', 'utf8');
  const listed = [...history.matchAll(/^\| `([a-z_]+\.[a-z_]+)` \|/gm)].map(([, action]) => action);
  t.same(listed.sort(), [...historyActions].sort(), 'docs/history.md lists every action');
});

t.test('the 3.0 document is the same one, in the words of 3.0', async (t) => {
  const committed30 = readFileSync('openapi/openapi-3.0.json', 'utf8');
  t.equal(
    committed30,
    `${JSON.stringify(toOpenApi30(document), null, 2)}\n`,
    'if the change is meant: npm run openapi',
  );
  const document30: Json = JSON.parse(committed30);
  t.equal(document30.openapi, '3.0.3');
  t.same(outline(document30), outline(document), 'the same operations with the same replies');
  t.notMatch(committed30, /"type": (\[|"null")/, 'null is said by `nullable`');
  t.same(document30.components.schemas.Key.properties.expiresAt, {
    ...document.components.schemas.Key.properties.expiresAt.anyOf[0],
    nullable: true,
  });
  const [bearer] = document30.paths['/v1/keys'].get.security;
  t.same(bearer, { bearer: [] });
});

function outline({ paths }: Json) {
  return Object.entries<Json>(paths).flatMap(([path, item]) =>
    Object.entries<Json>(item).map(([method, { operationId, responses, parameters = [] }]) => ({
      operation: `${method} ${path} ${operationId}`,
      replies: Object.keys(responses),
      parameters: parameters.map(({ name }: Json) => name),
    })),
  );
}

t.test('what 3.0 has no word for is refused, not left out', async (t) => {
  const withSchema = (schema: object) => ({
    info: {},
    components: { schemas: { Thing: schema, Other: { type: 'object' } } },
  });
  const severalOrNull = { anyOf: [{ type: 'string' }, { type: 'integer' }, { type: 'null' }] };
  for (const schema of [
    { const: 1 },
    { type: ['string', 'integer'] },
    severalOrNull,
    { properties: { a: { prefixItems: [] } } },
  ]) {
    t.throws(() => toOpenApi30(withSchema(schema)), /OpenAPI 3\.0 has/, JSON.stringify(schema));
  }
  const translated: Json = toOpenApi30(
    withSchema({
      properties: {
        type: { type: 'string', example: { type: ['kept', 'null'] } },
        enum: { anyOf: [{ type: 'string', enum: ['a'] }, { type: 'null' }] },
        named: { anyOf: [{ $ref: '#/components/schemas/Other' }, { type: 'null' }], description: 'said' },
        beside: { $ref: '#/components/schemas/Other', description: 'said' },
      },
    }),
  );
  t.same(translated.components.schemas.Thing.properties, {
    type: { type: 'string', example: { type: ['kept', 'null'] } },
    enum: { type: 'string', enum: ['a', null], nullable: true },
    named: { type: 'object', allOf: [{ $ref: '#/components/schemas/Other' }], description: 'said', nullable: true },
    beside: { allOf: [{ $ref: '#/components/schemas/Other' }], description: 'said' },
  });
});

t.test('the service serves the same document', async (t) => {
  const { app } = await startService(t);
  const served = (await app.inject('/openapi.json')).json();
  t.same({ ...served, info: { ...served.info, version: document.info.version } }, document);
});

t.test('every operation says all that a client needs', async (t) => {
  t.equal(document.openapi, '3.1.0');
  const ids = operations.map(([, operation]) => operation.operationId);
  t.equal(new Set(ids).size, ids.length, 'operationIds are unique');
  for (const [name, operation] of operations) {
    t.match(operation, { operationId: /^[a-z][A-Za-z]+$/, summary: /\S/, tags: [/\S/] }, name);
    t.ok(Array.isArray(operation.security), `${name} says who may call`);
    const isGateways = operation.security.some((one: Json) => 'gatewayHeader' in one);
    t.equal('500' in operation.responses && '400' in operation.responses, !isGateways, `${name} lists its problems`);
    if (operation.security.length > 0) t.ok(operation.responses['401'] && operation.responses['429'], name);
    for (const [status, response] of Object.entries<Json>(operation.responses)) {
      if (Number(status) < 400) continue;
      const problem = document.components.responses[String(response.$ref).split('/').at(-1) ?? ''];
      t.ok(problem.content['application/problem+json'].example, `${name} ${status} is a problem with an example`);
    }
    if (operation.requestBody === undefined) continue;
    const [body] = Object.values<Json>(operation.requestBody.content);
    t.ok(body.schema.example, `${name} has an example of its body`);
  }
});

t.test('every named shape of a reply has an example, its own or one for each member', async (t) => {
  for (const [name, schema] of Object.entries<Json>(document.components.schemas)) {
    t.ok(hasExample(schema), name);
  }
});

function hasExample(schema: Json): boolean {
  if (schema.$ref !== undefined || schema.example !== undefined || schema.enum !== undefined) return true;
  if (schema.type === 'boolean' || schema.type === 'integer') return true;
  if (schema.properties !== undefined) return Object.values<Json>(schema.properties).every(hasExample);
  if (schema.items !== undefined) return hasExample(schema.items);
  const options: Json[] = schema.anyOf ?? [];
  return options.length > 0 && options.filter((option) => option.type !== 'null').every(hasExample);
}
