import type { FastifyPluginAsyncZod } from 'fastify-type-provider-zod';
import { z } from 'zod';
import { type Transactor, transact } from '../database/work.ts';
import { isId, type WebhookId } from '../domain/ids.ts';
import { decodeCursor, toPage } from '../domain/page.ts';
import { organizationContextOf, organizationOf } from '../http/guard.ts';
import { listOf } from '../http/list.ts';
import { idParam, idSchema, pageOf, pageQuery, text, urlInput } from '../http/schemas.ts';
import {
  createWebhook,
  deleteWebhook,
  disableWebhook,
  enableWebhook,
  patchWebhook,
  rotateSecret,
  testWebhook,
} from './commands.ts';
import type { WebhookClient } from './connector.ts';
import { webhookEvents } from './policy.ts';
import { getWebhook, listWebhooks } from './store.ts';
import {
  toWebhookView,
  toWebhookWithSecretView,
  webhookEventSchema,
  webhookView,
  webhookWithSecretView,
} from './views.ts';

const eventsInput = z
  .array(
    webhookEventSchema.refine(
      (event) => (webhookEvents as readonly string[]).includes(event),
      `must be one of ${webhookEvents.join(', ')}`,
    ),
  )
  .min(1)
  .max(webhookEvents.length)
  .refine((events) => new Set(events).size === events.length, 'must not name an event twice')
  .refine((events) => events.length === 1 || !events.includes('*'), 'must not name others beside *')
  .meta({ example: ['key.created', 'key.deleted'], uniqueItems: true });

const fields = {
  url: urlInput,
  events: eventsInput,
  description: text(200).nullish().meta({ example: 'Billing' }),
};

const newWebhook = z
  .strictObject({
    ...fields,
    partnerId: idSchema('partner').nullish().meta({ description: 'It is notified of this partner and its keys only.' }),
  })
  .meta({
    id: 'NewWebhook',
    example: { url: 'https://hooks.example.com/latchkey', events: ['key.created', 'key.deleted'] },
  });

const webhookPatch = z
  .strictObject({
    url: fields.url.optional(),
    events: fields.events.optional(),
    description: fields.description,
  })
  .meta({ id: 'WebhookPatch', example: { events: ['*'] } });

export interface WebhookRoutesOptions {
  transactor: Transactor;
  client: Pick<WebhookClient, 'checkUrl'>;
}

export const webhookRoutes: FastifyPluginAsyncZod<WebhookRoutesOptions> = async (app, options) => {
  const { transactor, client } = options;
  const { db } = transactor;
  const params = z.object({ webhookId: idParam('Which webhook') });

  app.get(
    '/webhooks',
    {
      config: { access: { role: 'admin', scope: 'read' }, problems: ['cursor_invalid'] },
      schema: {
        operationId: 'listWebhooks',
        tags: ['Webhooks'],
        summary: 'Webhooks, newest first',
        querystring: z.strictObject({ ...pageQuery, partnerId: idSchema('partner').optional() }),
        response: { 200: pageOf('WebhookPage', webhookView) },
      },
    },
    async (request) => {
      const { limit, cursor, partnerId } = request.query;
      const page = { limit, before: decodeCursor(listOf(request), cursor, isWebhookId) };
      const webhooks = await listWebhooks(db, organizationOf(request), { partnerId }, page);
      return toPage(listOf(request), webhooks, limit, (webhook) => webhook.id, toWebhookView);
    },
  );

  app.post(
    '/webhooks',
    {
      config: {
        access: { role: 'admin', scope: 'write' },
        idempotencyKey: 'taken',
        problems: ['not_found', 'already_deleted', 'conflict'],
      },
      schema: {
        operationId: 'createWebhook',
        tags: ['Webhooks'],
        summary: 'Have events sent to a URL',
        description: 'Signed by the Standard Webhooks specification. The reply has the signing secret.',
        body: newWebhook,
        response: { 201: webhookWithSecretView },
      },
    },
    async (request, reply) => {
      const { url, events, partnerId, description } = request.body;
      const given = { url, events, partnerId: partnerId ?? null, description: description ?? null };
      await client.checkUrl(url);
      return app.runOnce(request, reply, organizationContextOf(request), async (work) => {
        const created = await createWebhook(work, given);
        const { id } = created.webhook;
        return { view: toWebhookWithSecretView(created), location: `/v1/webhooks/${id}`, plaintextOf: [id] };
      });
    },
  );

  app.get(
    '/webhooks/:webhookId',
    {
      config: { access: { role: 'admin', scope: 'read' } },
      schema: {
        operationId: 'getWebhook',
        tags: ['Webhooks'],
        summary: 'One webhook, never its secret',
        params,
        response: { 200: webhookView },
      },
    },
    async (request) => toWebhookView(await getWebhook(db, organizationOf(request), request.params.webhookId)),
  );

  app.patch(
    '/webhooks/:webhookId',
    {
      config: { access: { role: 'admin', scope: 'write' } },
      schema: {
        operationId: 'updateWebhook',
        tags: ['Webhooks'],
        summary: 'Change the URL of a webhook, its events or its description',
        params,
        body: webhookPatch,
        response: { 200: webhookView },
      },
    },
    async (request) => {
      const { params, body } = request;
      if (body.url !== undefined) await client.checkUrl(body.url);
      const by = organizationContextOf(request);
      return toWebhookView(await transact(transactor, by, (work) => patchWebhook(work, params.webhookId, body)));
    },
  );

  app.delete(
    '/webhooks/:webhookId',
    {
      config: { access: { role: 'admin', scope: 'write' } },
      schema: {
        operationId: 'deleteWebhook',
        tags: ['Webhooks'],
        summary: 'Delete a webhook with its secrets; nothing more is sent',
        params,
        response: { 200: webhookView },
      },
    },
    async (request) => {
      const { webhookId } = request.params;
      const by = organizationContextOf(request);
      return toWebhookView(await transact(transactor, by, (work) => deleteWebhook(work, webhookId)));
    },
  );

  app.post(
    '/webhooks/:webhookId/rotate-secret',
    {
      config: { access: { role: 'admin', scope: 'write' }, idempotencyKey: 'taken' },
      schema: {
        operationId: 'rotateWebhookSecret',
        tags: ['Webhooks'],
        summary: 'A new signing secret; the old one signs along for 24 hours',
        description: 'One that signs along already from an earlier rotation signs no more.',
        params,
        response: { 200: webhookWithSecretView },
      },
    },
    async (request, reply) =>
      app.runOnce(request, reply, organizationContextOf(request), async (work) => {
        const rotated = await rotateSecret(work, request.params.webhookId);
        return { view: toWebhookWithSecretView(rotated), plaintextOf: [rotated.webhook.id] };
      }),
  );

  const acts = [
    {
      act: 'enable',
      command: enableWebhook,
      operationId: 'enableWebhook',
      summary: 'Send to a webhook again what happens from now on',
      problems: [],
    },
    {
      act: 'disable',
      command: disableWebhook,
      operationId: 'disableWebhook',
      summary: 'Send nothing to a webhook; what waits for it has failed',
      problems: [],
    },
    {
      act: 'test',
      command: testWebhook,
      operationId: 'testWebhook',
      summary: 'Send webhook.tested to a webhook, whatever it has asked for',
      problems: ['conflict'],
    },
  ] as const;
  for (const { act, command, operationId, summary, problems } of acts) {
    app.post(
      `/webhooks/:webhookId/${act}`,
      {
        config: { access: { role: 'admin', scope: 'write' }, idempotencyKey: 'taken', problems: [...problems] },
        schema: { operationId, tags: ['Webhooks'], summary, params, response: { 200: webhookView } },
      },
      async (request, reply) =>
        app.runOnce(request, reply, organizationContextOf(request), async (work) => ({
          view: toWebhookView(await command(work, request.params.webhookId)),
        })),
    );
  }
};

const isWebhookId = (value: string): value is WebhookId => isId('webhook', value);
