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
  .refine((events) => new Set(events).size === events.length, 'must not contain an event twice')
  .refine((events) => events.length === 1 || !events.includes('*'), 'must not contain other events beside *')
  .meta({ example: ['key.created', 'key.deleted'], uniqueItems: true });

const fields = {
  url: urlInput,
  events: eventsInput,
  description: text(200).nullish().meta({ example: 'Billing' }),
};

const newWebhook = z
  .strictObject({
    ...fields,
    partnerId: idSchema('partner')
      .nullish()
      .meta({ description: 'Limits the webhook to events of this partner and its keys.' }),
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
  const params = z.object({ webhookId: idParam("The webhook's id.") });

  app.get(
    '/webhooks',
    {
      config: { access: { role: 'admin', scope: 'read' }, problems: ['cursor_invalid'] },
      schema: {
        operationId: 'listWebhooks',
        tags: ['Webhooks'],
        summary: 'List webhooks, newest first',
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
        summary: 'Create a webhook that sends events to a URL',
        description:
          'Deliveries are signed according to the Standard Webhooks specification. The reply contains the signing secret.',
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
        summary: 'Get a webhook without its secret',
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
        summary: 'Delete a webhook and its secrets',
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
        summary: 'Rotate the signing secret of a webhook',
        description: 'The old secret also signs for 24 hours. A secret from an earlier rotation stops signing at once.',
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

  const actions = [
    {
      action: 'enable',
      command: enableWebhook,
      operationId: 'enableWebhook',
      summary: 'Enable a webhook for events from now on',
      problems: [],
    },
    {
      action: 'disable',
      command: disableWebhook,
      operationId: 'disableWebhook',
      summary: 'Disable a webhook; its pending deliveries fail',
      problems: [],
    },
    {
      action: 'test',
      command: testWebhook,
      operationId: 'testWebhook',
      summary: 'Send a webhook.tested event to a webhook, regardless of its events',
      problems: ['conflict'],
    },
  ] as const;
  for (const { action, command, operationId, summary, problems } of actions) {
    app.post(
      `/webhooks/:webhookId/${action}`,
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
