import type { FastifyReply } from 'fastify';
import type { FastifyPluginAsyncZod } from 'fastify-type-provider-zod';
import { z } from 'zod';
import { type Transactor, transact } from '../database/work.ts';
import { entityTagOf } from '../domain/entity-tag.ts';
import { isId, type PartnerId } from '../domain/ids.ts';
import { decodeCursor, toPage } from '../domain/page.ts';
import { toRateLimit } from '../domain/rate-limit.ts';
import { type RestoreWindows, windowEnd } from '../domain/restore-window.ts';
import { organizationContextOf, organizationOf } from '../http/guard.ts';
import { expectedTags } from '../http/if-match.ts';
import { listOf } from '../http/list.ts';
import {
  accessesInput,
  accessSchema,
  actorView,
  emailInput,
  externalIdInput,
  idParam,
  idView,
  limitMeaning,
  metadataInput,
  metadataView,
  nameInput,
  pageOf,
  pageQuery,
  queryBoolean,
  rateLimitSchema,
  timestampView,
} from '../http/schemas.ts';
import type { KeyMint } from '../keys/mint.ts';
import { createdKeyView, toCreatedKeyView } from '../keys/views.ts';
import { createPartner, deletePartner, patchPartner, setPartnerSuspended } from './commands.ts';
import { restorePartner } from './restore-commands.ts';
import { getPartner, listPartners, type Partner } from './store.ts';

const externalIdMeaning =
  "The partner's id in the organization's own system, unique among its live partners. Verification returns it.";

const partnerMetadataMeaning = 'Any JSON object of at most 16 KiB. A change replaces the whole object.';

const fields = {
  id: idView('partner'),
  organizationId: idView('org'),
  email: z.string().meta({ example: 'team@partner.example' }),
  name: z.string().nullable().meta({ example: 'Partner Inc' }),
  externalId: z.string().nullable().meta({ description: externalIdMeaning, example: 'customer-4711' }),
  permissions: z.array(accessSchema).meta({ example: ['read'] }),
  status: z.enum(['active', 'suspended', 'deleted']).meta({ id: 'PartnerStatus' }),
  rateLimit: rateLimitSchema.nullable().meta({ description: limitMeaning.partner }),
  metadata: metadataView,
  createdAt: timestampView,
  createdBy: actorView,
  suspendedAt: timestampView.nullable(),
  deletedAt: timestampView.nullable(),
  restorableUntil: timestampView.nullable(),
};

const partnerView = z.object(fields).meta({ id: 'Partner' });

const createdPartnerView = z
  .object({
    ...fields,
    keys: z
      .array(createdKeyView)
      .meta({ description: 'One new key per permission, with its plaintext. Empty if `createKeys` is false.' }),
  })
  .meta({ id: 'CreatedPartner' });

const newPartner = z
  .strictObject({
    email: emailInput,
    permissions: accessesInput,
    name: nameInput.nullish(),
    externalId: externalIdInput.nullish().meta({ description: externalIdMeaning }),
    rateLimit: rateLimitSchema.nullish().meta({ description: limitMeaning.partner }),
    metadata: metadataInput.optional().meta({ description: partnerMetadataMeaning }),
    createKeys: z.boolean().default(true).meta({
      description: 'With false the partner begins without keys. Each key can then be created by a claim.',
    }),
  })
  .meta({
    id: 'NewPartner',
    example: { email: 'team@partner.example', permissions: ['read', 'write'], name: 'Partner Inc' },
  });

const partnerPatch = z
  .strictObject({
    email: emailInput.optional(),
    permissions: accessesInput.optional(),
    name: nameInput.nullish(),
    externalId: externalIdInput.nullish().meta({ description: externalIdMeaning }),
    rateLimit: rateLimitSchema.nullish().meta({ description: limitMeaning.partner }),
    metadata: metadataInput.optional().meta({ description: partnerMetadataMeaning }),
  })
  .meta({ id: 'PartnerPatch', example: { permissions: ['read'] } });

export interface PartnerRoutesOptions extends RestoreWindows {
  transactor: Transactor;
  mint: KeyMint;
  tokenPrefix: string;
}

export const partnerRoutes: FastifyPluginAsyncZod<PartnerRoutesOptions> = async (app, options) => {
  const { transactor, mint, tokenPrefix, undoWindowSeconds, retentionSeconds } = options;
  const { db } = transactor;
  const params = z.object({ partnerId: idParam("The partner's id.") });
  const toView = (partner: Partner) => toPartnerView(partner, undoWindowSeconds);
  /** Adds the entity tag for `If-Match`. */
  const show = (reply: FastifyReply, partner: Partner) => {
    reply.header('etag', entityTagOf(partner));
    return toView(partner);
  };

  const toReply = (partner: Partner) => ({ view: toView(partner), etag: entityTagOf(partner) });

  app.get(
    '/partners',
    {
      config: { access: { role: 'admin', scope: 'read' }, problems: ['cursor_invalid'] },
      schema: {
        operationId: 'listPartners',
        tags: ['Partners'],
        summary: 'List partners, newest first',
        querystring: z.strictObject({
          ...pageQuery,
          email: z
            .string()
            .max(254)
            .optional()
            .meta({ description: 'The e-mail address, compared without regard to case.' }),
          externalId: externalIdInput.optional().meta({ description: 'The exact externalId.' }),
          includeDeleted: queryBoolean.meta({ type: 'boolean', default: false }),
        }),
        response: { 200: pageOf('PartnerPage', partnerView) },
      },
    },
    async (request) => {
      const { limit, cursor, ...filter } = request.query;
      const page = { limit, before: decodeCursor(listOf(request), cursor, isPartnerId) };
      const partners = await listPartners(db, organizationOf(request), filter, page);
      return toPage(listOf(request), partners, limit, (partner) => partner.id, toView);
    },
  );

  app.post(
    '/partners',
    {
      config: {
        access: { role: 'admin', scope: 'write' },
        idempotencyKey: 'taken',
        entityTag: true,
        problems: ['partner_exists', 'external_id_exists', 'overloaded'],
      },
      schema: {
        operationId: 'createPartner',
        tags: ['Partners'],
        summary: 'Create a partner with one key per permission',
        description:
          'All or nothing. A partner with read and write has two rows and gets one key in each, or none if `createKeys` is false.',
        body: newPartner,
        response: { 201: createdPartnerView },
      },
    },
    async (request, reply) => {
      const by = organizationContextOf(request);
      const { createKeys, ...given } = request.body;
      const minted = await Promise.all((createKeys ? given.permissions : []).map(() => mint.mint(by.organizationId)));
      return app.runOnce(request, reply, by, async (work) => {
        const { partner, keys } = await createPartner(work, minted, given);
        const context = { tokenPrefix, undoWindowSeconds, now: work.now };
        return {
          view: { ...toView(partner), keys: keys.map((key) => toCreatedKeyView(key, context)) },
          location: `/v1/partners/${partner.id}`,
          etag: entityTagOf(partner),
          ...(keys.length === 0 ? {} : { plaintextOf: [partner.id, ...keys.map(({ key }) => key.id)] }),
        };
      });
    },
  );

  app.get(
    '/partners/:partnerId',
    {
      config: { access: { role: 'admin', scope: 'read' }, entityTag: true },
      schema: {
        operationId: 'getPartner',
        tags: ['Partners'],
        summary: 'Get a partner',
        params,
        response: { 200: partnerView },
      },
    },
    async (request, reply) => show(reply, await getPartner(db, organizationOf(request), request.params.partnerId)),
  );

  app.patch(
    '/partners/:partnerId',
    {
      config: {
        access: { role: 'admin', scope: 'write' },
        entityTag: true,
        problems: ['already_deleted', 'partner_exists', 'external_id_exists'],
      },
      schema: {
        operationId: 'updatePartner',
        tags: ['Partners'],
        summary: 'Change a partner',
        description:
          "Removing a permission deletes that row's keys at once. Adding a permission creates no key: use POST /v1/keys.",
        params,
        body: partnerPatch,
        response: { 200: partnerView },
      },
    },
    async (request, reply) => {
      const { params, body } = request;
      const by = organizationContextOf(request);
      const expected = expectedTags(request);
      const patched = await transact(transactor, by, (work) => patchPartner(work, params.partnerId, body, expected));
      return show(reply, patched);
    },
  );

  app.delete(
    '/partners/:partnerId',
    {
      config: { access: { role: 'admin', scope: 'write' }, problems: ['already_deleted'] },
      schema: {
        operationId: 'deletePartner',
        tags: ['Partners'],
        summary: 'Delete a partner and all its keys',
        params,
        response: { 200: partnerView },
      },
    },
    async (request) => {
      const { partnerId } = request.params;
      return toView(
        await transact(transactor, organizationContextOf(request), (work) => deletePartner(work, partnerId)),
      );
    },
  );

  app.post(
    '/partners/:partnerId/suspend',
    {
      config: {
        access: { role: 'admin', scope: 'write' },
        idempotencyKey: 'taken',
        entityTag: true,
        problems: ['already_deleted'],
      },
      schema: {
        operationId: 'suspendPartner',
        tags: ['Partners'],
        summary: 'Suspend a partner and so all its keys',
        params,
        response: { 200: partnerView },
      },
    },
    async (request, reply) => {
      const { partnerId } = request.params;
      return app.runOnce(request, reply, organizationContextOf(request), async (work) =>
        toReply(await setPartnerSuspended(work, partnerId, true)),
      );
    },
  );

  app.post(
    '/partners/:partnerId/resume',
    {
      config: {
        access: { role: 'admin', scope: 'write' },
        idempotencyKey: 'taken',
        entityTag: true,
        problems: ['already_deleted'],
      },
      schema: {
        operationId: 'resumePartner',
        tags: ['Partners'],
        summary: 'Resume a suspended partner',
        description: 'Keys that are suspended themselves stay suspended.',
        params,
        response: { 200: partnerView },
      },
    },
    async (request, reply) => {
      const { partnerId } = request.params;
      return app.runOnce(request, reply, organizationContextOf(request), async (work) =>
        toReply(await setPartnerSuspended(work, partnerId, false)),
      );
    },
  );

  app.post(
    '/partners/:partnerId/restore',
    {
      config: {
        access: { role: 'admin', scope: 'write' },
        idempotencyKey: 'taken',
        entityTag: true,
        problems: ['not_restorable', 'partner_exists', 'external_id_exists', 'conflict'],
      },
      schema: {
        operationId: 'restorePartner',
        tags: ['Partners'],
        summary: 'Restore a deleted partner',
        description:
          'Possible until restorableUntil. Restores exactly the keys that were deleted with the partner, all or nothing. ' +
          'Later only an operator can restore the partner, through a recovery request.',
        params,
        response: { 200: partnerView },
      },
    },
    async (request, reply) => {
      const { partnerId } = request.params;
      const restoring = { windows: { undoWindowSeconds, retentionSeconds }, recovery: null };
      return app.runOnce(request, reply, organizationContextOf(request), async (work) =>
        toReply(await restorePartner(work, partnerId, restoring)),
      );
    },
  );
};

const isPartnerId = (text: string): text is PartnerId => isId('partner', text);

function toPartnerView(partner: Partner, undoWindowSeconds: number): z.infer<typeof partnerView> {
  const { deleted_at: deletedAt, suspended_at: suspendedAt } = partner;
  return {
    id: partner.id,
    organizationId: partner.organization_id,
    email: partner.email,
    name: partner.name,
    externalId: partner.external_id,
    permissions: partner.permissions,
    status: deletedAt !== null ? 'deleted' : suspendedAt !== null ? 'suspended' : 'active',
    rateLimit: toRateLimit(partner),
    metadata: partner.metadata,
    createdAt: partner.created_at.toISOString(),
    createdBy: partner.created_by,
    suspendedAt: suspendedAt?.toISOString() ?? null,
    deletedAt: deletedAt?.toISOString() ?? null,
    restorableUntil: deletedAt === null ? null : windowEnd(deletedAt, undoWindowSeconds).toISOString(),
  };
}
