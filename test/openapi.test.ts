import { readFileSync } from 'node:fs';
import t from 'tap';
import { describeApi } from '../src/describe-api.ts';
import { historyActions } from '../src/history/events.ts';
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
