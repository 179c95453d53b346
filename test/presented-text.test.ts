import fastify from 'fastify';
import { serializerCompiler, validatorCompiler } from 'fastify-type-provider-zod';
import { z } from 'zod';
import { presentedTexts } from '../src/credentials/presented.ts';
import { Problem } from '../src/domain/errors.ts';
import { jsonBody } from '../src/http/json-body.ts';
import { strictRoutes } from '../src/http/strict-routes.ts';
import { foreignToken } from './support/imports.ts';
import { t } from './support/tap.ts';

t.test('the credential of a request is found in every header that can carry it', async (t) => {
  const found = (headers: Record<string, string>, url = '/') => presentedTexts({ headers, url });
  t.same(found({ authorization: 'Bearer one' }), ['one']);
  t.same(found({ authorization: 'bearer   one', 'x-api-key': 'two words' }), ['one', 'two words']);
  t.same(found({ 'x-old': 'three' }, '/v1/authorize?a=b&keyHeader=X-Old'), ['three']);
  t.same(found({ 'x-old': 'three' }, '/v1/authorize?keyHeader='), []);
  t.same(found({}), []);
});

t.test("a body that contains its request's own key is rejected, whatever the key's form", async (t) => {
  const app = fastify();
  t.teardown(() => app.close());
  app.setValidatorCompiler(validatorCompiler);
  app.setSerializerCompiler(serializerCompiler);
  app.setErrorHandler((error, _request, reply) => {
    if (!(error instanceof Problem)) throw error;
    return reply.code(error.status).send({ code: error.code, errors: error.errors });
  });
  await app.register(strictRoutes, { tokenPrefix: 'lk' });
  await app.register(jsonBody);
  app.decorateRequest('principal', null);
  app.addHook('onRequest', async (request) => {
    if (request.headers.authorization === undefined) return;
    const partner = { organizationId: 'org_x', partnerId: null, permission: 'read', name: null, expiresAt: null };
    Object.assign(request, { principal: { kind: 'api_key', id: 'key_x', ...partner } });
  });
  app.post(
    '/note',
    {
      config: { access: { role: 'any' } },
      schema: { body: z.unknown(), response: { 200: z.unknown() } },
    },
    async ({ body }) => body,
  );
  const key = `${foreignToken()}"/é`.slice(0, -1);
  const send = async (note: unknown, authorization?: string) => {
    const headers = { host: 'x', ...(authorization === undefined ? {} : { authorization }) };
    const reply = await app.inject({ method: 'POST', url: '/note', headers, payload: { note } });
    return { status: reply.statusCode, body: reply.json() };
  };
  const own = `Bearer ${key}`;
  t.match(await send('nothing', own), { status: 200 });
  t.match(await send(`my key is ${key}`), { status: 200 }, 'in a request of somebody else it is any text');
  for (const [note, path] of [
    [`my key is ${key}`, 'body.note'],
    [{ deep: [encodeURIComponent(key)] }, 'body.note.deep.0'],
    [{ [key]: 1 }, `body.note.${JSON.stringify(key).slice(1, -1)}`],
  ] as const) {
    t.same(await send(note, own), {
      status: 400,
      body: { code: 'secret_in_text', errors: [{ path, message: 'must not contain the credential of the request' }] },
    });
  }
});
