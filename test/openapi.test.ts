import { readFileSync } from 'node:fs';
import { historyActions } from '../src/domain/events.ts';
import { clientTypes } from '../tools/openapi/client-types.ts';
import { describeApi } from '../tools/openapi/describe-api.ts';
import { toOpenApi30 } from '../tools/openapi/openapi-3-0.ts';
import type { Json } from './support/app.ts';
import { startService } from './support/app.ts';
import { t } from './support/tap.ts';

const committed = readFileSync('openapi/openapi.json', 'utf8');
const document: Json = JSON.parse(committed);

const operations: Array<[name: string, operation: Json]> = Object.entries(document.paths).flatMap(([path, item]) =>
  Object.entries(item as Json).map(([method, operation]): [string, Json] => [`${method} ${path}`, operation]),
);

t.test('the committed document equals the routes', async (t) => {
  t.equal(committed, await describeApi(), 'if the change is intended, run npm run openapi');
  t.equal(readFileSync('clients/node/src/api.ts', 'utf8'), clientTypes(committed), "the Node client's types");
});

t.test('docs/history.md lists every action', async (t) => {
  const history = readFileSync('docs/history.md', 'utf8');
  const listed = [...history.matchAll(/^\| `([a-z_]+\.[a-z_]+)` \|/gm)].map(([, action]) => action);
  t.same(listed.sort(), [...historyActions].sort());
});

t.test('the 3.0 document describes the same API', async (t) => {
  const committed30 = readFileSync('openapi/openapi-3.0.json', 'utf8');
  t.equal(
    committed30,
    `${JSON.stringify(toOpenApi30(document), null, 2)}\n`,
    'if the change is intended, run npm run openapi',
  );
  const document30: Json = JSON.parse(committed30);
  t.equal(document30.openapi, '3.0.3');
  t.same(outline(document30), outline(document), 'the same operations with the same replies');
  t.notMatch(committed30, /"type": (\[|"null")/, 'null is expressed by `nullable`');
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

t.test('a schema that 3.0 cannot express is rejected, not dropped', async (t) => {
  const withSchema = (schema: object) => ({
    info: {},
    paths: { '/': { schema: { $ref: '#/components/schemas/Thing' } } },
    components: {
      schemas: { Thing: schema, Other: { type: 'object' }, Listed: { type: 'string', enum: ['a'] } },
      responses: {},
    },
  });
  const severalOrNull = { anyOf: [{ type: 'string' }, { type: 'integer' }, { type: 'null' }] };
  for (const schema of [
    { const: 1 },
    { type: ['string', 'integer'] },
    severalOrNull,
    { properties: { a: { prefixItems: [] } } },
  ]) {
    t.throws(
      () => toOpenApi30(withSchema(schema)),
      /OpenAPI 3\.0 (does not support|supports one type)/,
      JSON.stringify(schema),
    );
  }
  const translated: Json = toOpenApi30(
    withSchema({
      properties: {
        type: { type: 'string', example: { type: ['kept', 'null'] } },
        enum: { anyOf: [{ type: 'string', enum: ['a'] }, { type: 'null' }] },
        listed: { anyOf: [{ $ref: '#/components/schemas/Listed' }, { type: 'null' }], description: 'said' },
        named: { anyOf: [{ $ref: '#/components/schemas/Other' }, { type: 'null' }], description: 'said' },
        beside: { $ref: '#/components/schemas/Other', description: 'said' },
      },
    }),
  );
  t.same(translated.components.schemas.Thing.properties, {
    type: { type: 'string', example: { type: ['kept', 'null'] } },
    enum: { type: 'string', enum: ['a', null], nullable: true },
    listed: { allOf: [{ $ref: '#/components/schemas/NullableListed' }], description: 'said' },
    named: { type: 'object', allOf: [{ $ref: '#/components/schemas/Other' }], description: 'said', nullable: true },
    beside: { allOf: [{ $ref: '#/components/schemas/Other' }], description: 'said' },
  });
  const { Listed, NullableListed } = translated.components.schemas;
  t.same([Listed, NullableListed], [undefined, { type: 'string', enum: ['a', null], nullable: true }]);
});

t.test('the service serves the same document', async (t) => {
  const { app } = await startService(t);
  for (const path of ['/openapi.json', '/docs/json']) t.same((await app.inject(path)).json(), document, path);
  t.match((await app.inject('/docs/yaml')).body, /^openapi: 3\.1\.0$/m);
});

t.test('every operation has all that a client needs', async (t) => {
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
    t.ok(schemaNamed(document, body.schema.$ref).example, `${name} has an example of its body`);
  }
});

const schemaNamed = ({ components }: Json, reference: string): Json =>
  components.schemas[reference.split('/').at(-1) ?? ''];

/** Words that some language does not allow as name of a member or type. */
const reserved = ['class', 'const', 'default', 'enum', 'function', 'interface', 'object', 'package', 'self', 'switch'];

for (const file of ['openapi/openapi.json', 'openapi/openapi-3.0.json']) {
  const { paths, components }: Json = JSON.parse(readFileSync(file, 'utf8'));

  t.test(
    `${file}: each body, reply, object, enum and union is named, so that types of clients are named`,
    async (t) => {
      for (const { at, schema } of schemasIn({ paths, components })) {
        const isNamed = /^\/components\/schemas\/[^/]+$/.test(at);
        const options: Json[] = (schema.anyOf ?? schema.oneOf ?? []).filter(({ type }: Json) => type !== 'null');
        const isDiscriminator = schema.enum?.length === 1 && at.endsWith('/properties/kind');
        const needsName = schema.properties !== undefined || schema.enum !== undefined || options.length > 1;
        t.ok(isNamed || isDiscriminator || !needsName, `${at} is a part of ${Object.keys(schema)}`);
        if (options.length > 1)
          t.ok(
            options.every(({ $ref }) => $ref !== undefined),
            `${at} is made of named schemas`,
          );
      }
      for (const [path, item] of Object.entries<Json>(paths)) {
        for (const [method, { requestBody, responses }] of Object.entries<Json>(item)) {
          const successes = Object.entries<Json>(responses).filter(([status]) => status < '300');
          for (const { content = {} } of [requestBody ?? {}, ...successes.map(([, response]) => response)]) {
            const schema = content['application/json']?.schema ?? content['application/x-www-form-urlencoded']?.schema;
            if (path !== '/openapi.json' && schema !== undefined) t.ok(schema.$ref, `${method} ${path}`);
          }
        }
      }
    },
  );

  t.test(`${file}: no name is a reserved word, or differs from another only by case`, async (t) => {
    const names = Object.keys(components.schemas);
    t.equal(new Set(names.map((name) => name.toLowerCase())).size, names.length);
    const members = schemasIn({ paths, components }).flatMap(({ schema }) => Object.keys(schema.properties ?? {}));
    for (const name of [...names, ...members]) t.notOk(reserved.includes(name.toLowerCase()), name);
  });

  t.test(`${file}: a member with a plaintext is always required`, async (t) => {
    const { CreatedKey, CreatedAccessToken, WebhookWithSecret, RevealedKey, CreatedPartner } = components.schemas;
    t.ok(CreatedKey.required.includes('key') && RevealedKey.required.includes('key'));
    t.ok(CreatedAccessToken.required.includes('token') && WebhookWithSecret.required.includes('secret'));
    t.same(CreatedPartner.properties.keys.items, { $ref: '#/components/schemas/CreatedKey' });
  });

  t.test(`${file}: a union whose options differ in one member has a discriminator`, async (t) => {
    t.match(components.schemas.HistoryPage, {
      oneOf: [{ $ref: /EventPage$/ }, { $ref: /RefusedAttemptsPage$/ }],
      discriminator: { propertyName: 'kind', mapping: { events: /EventPage$/, refused: /RefusedAttemptsPage$/ } },
    });
  });

  t.test(`${file}: no parameter has an example, because a console would send it`, async (t) => {
    for (const [path, item] of Object.entries<Json>(paths)) {
      for (const parameter of Object.values<Json>(item).flatMap(({ parameters = [] }) => parameters)) {
        const { $ref, allOf: [first] = [{ $ref }] } = parameter.schema;
        const named = first.$ref === undefined ? {} : schemaNamed({ components }, first.$ref);
        t.notMatch(JSON.stringify([parameter, named]), '"example', `${path} ${parameter.name}`);
      }
    }
  });
}

/** Each schema with its path. */
function schemasIn(value: Json, at = ''): Array<{ at: string; schema: Json }> {
  if (Array.isArray(value)) return value.flatMap((item, index) => schemasIn(item, `${at}/${index}`));
  if (typeof value !== 'object' || value === null) return [];
  const isNameList = /\/(properties|schemas|responses|headers|paths|content)$/.test(at);
  const below = Object.entries(value).flatMap(([name, member]) =>
    name === 'example' && !isNameList ? [] : schemasIn(member, `${at}/${name}`),
  );
  return isNameList ? below : [{ at, schema: value }, ...below];
}

t.test('every named schema of a reply has an example, or one for each member', async (t) => {
  for (const [name, schema] of Object.entries<Json>(document.components.schemas)) {
    t.ok(hasExample(schema), name);
  }
});

function hasExample(schema: Json): boolean {
  if (schema.$ref !== undefined || schema.example !== undefined || schema.enum !== undefined) return true;
  if (schema.type === 'boolean' || schema.type === 'integer') return true;
  if (schema.properties !== undefined) return Object.values<Json>(schema.properties).every(hasExample);
  if (schema.items !== undefined) return hasExample(schema.items);
  const options: Json[] = schema.anyOf ?? schema.oneOf ?? [];
  return options.length > 0 && options.filter((option) => option.type !== 'null').every(hasExample);
}
