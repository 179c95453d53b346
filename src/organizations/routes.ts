import type { FastifyReply } from 'fastify';
import type { FastifyPluginAsyncZod } from 'fastify-type-provider-zod';
import { z } from 'zod';
import { type Transactor, transact } from '../database/work.ts';
import { entityTagOf } from '../domain/entity-tag.ts';
import { isId, newId, type OrganizationId } from '../domain/ids.ts';
import { decodeCursor, toPage } from '../domain/page.ts';
import { actorContextOf, organizationContextOf, organizationOf } from '../http/guard.ts';
import { expectedTags } from '../http/if-match.ts';
import { listOf } from '../http/list.ts';
import {
  actorView,
  idParam,
  idView,
  limitMeaning,
  nameInput,
  pageOf,
  pageQuery,
  rateLimitSchema,
  timestampView,
} from '../http/schemas.ts';
import { addOrganization, patchOrganization, putRateLimit, rateLimitOf, settingsOf } from './commands.ts';
import { getOrganization, listOrganizations, type Organization } from './store.ts';

const keyRevealSchema = z.enum(['allowed', 'never']).meta({ id: 'KeyReveal' });

const leakResponseSchema = z.enum(['notify', 'suspend', 'revoke']).meta({
  id: 'LeakResponse',
  description:
    'What a report of a leaked key does in addition to the event `key.leak_reported`. `notify`: nothing; `suspend`: suspends the ' +
    'key; `revoke`: deletes it as compromised, which cannot be undone.',
});
const selfServiceSchema = z
  .boolean()
  .meta({ description: 'Whether the holder of a key may rotate and revoke it, with the key itself.' });

const lifetimeSchema = z.int().min(1).max(1_000_000_000);
const lifetimeMeaning = {
  max: {
    description:
      'How long a key may live, counted from its creation. Null: without end. A change does not affect existing keys.',
    example: 31_536_000,
  },
  default: {
    description:
      'How long a key lives that is created or rotated without `expiresAt`. Null: as long as maxKeyLifetimeSeconds allows.',
    example: 7_776_000,
  },
};

const idleDaysSchema = z.int().min(1).max(3_650);
const idleMeaning = {
  description:
    'After how many days without use a key is suspended. Null: never. It is announced 7 days ahead, or half of the time ahead if the time is 7 days or less.',
  example: 90,
};

const organizationView = z
  .object({
    id: idView('org'),
    name: z.string().meta({ example: 'Example Inc' }),
    keyReveal: keyRevealSchema.meta({
      description:
        'never: Latchkey stores no plaintext, except for a pending claim. Only the reply that creates a key, or the claim, returns it.',
    }),
    leakResponse: leakResponseSchema,
    selfService: selfServiceSchema,
    maxKeyLifetimeSeconds: lifetimeSchema.nullable().meta(lifetimeMeaning.max),
    defaultKeyLifetimeSeconds: lifetimeSchema.nullable().meta(lifetimeMeaning.default),
    idleSuspendAfterDays: idleDaysSchema.nullable().meta(idleMeaning),
    rateLimit: rateLimitSchema.meta({ description: limitMeaning.organization }),
    createdAt: timestampView,
    createdBy: actorView,
  })
  .meta({ id: 'Organization' });

const newOrganization = z
  .strictObject({ name: nameInput, keyReveal: keyRevealSchema.optional() })
  .meta({ id: 'NewOrganization', example: { name: 'Example Inc' } });

const organizationPatch = z
  .strictObject({
    name: nameInput.optional(),
    keyReveal: keyRevealSchema.optional(),
    leakResponse: leakResponseSchema.optional(),
    selfService: selfServiceSchema.optional(),
    maxKeyLifetimeSeconds: lifetimeSchema.nullish().meta(lifetimeMeaning.max),
    defaultKeyLifetimeSeconds: lifetimeSchema.nullish().meta(lifetimeMeaning.default),
    idleSuspendAfterDays: idleDaysSchema.nullish().meta(idleMeaning),
  })
  .meta({ id: 'OrganizationPatch', example: { name: 'Example Inc' } });

function toView(organization: Organization) {
  return {
    id: organization.id,
    name: organization.name,
    ...settingsOf(organization),
    rateLimit: rateLimitOf(organization),
    createdAt: organization.created_at.toISOString(),
    createdBy: organization.created_by,
  };
}

/** Adds the entity tag for `If-Match`. */
function show(reply: FastifyReply, organization: Organization) {
  reply.header('etag', entityTagOf(organization));
  return toView(organization);
}

const isOrganizationId = (text: string): text is OrganizationId => isId('org', text);

/** The caller's own organization, for admins. */
export const organizationRoutes: FastifyPluginAsyncZod<{ transactor: Transactor }> = async (app, { transactor }) => {
  const { db } = transactor;

  app.get(
    '/organization',
    {
      config: { access: { role: 'admin', scope: 'read' }, entityTag: true },
      schema: {
        operationId: 'getOrganization',
        tags: ['Administration'],
        summary: "Get the caller's organization",
        response: { 200: organizationView },
      },
    },
    async (request, reply) => show(reply, await getOrganization(db, organizationOf(request))),
  );

  app.patch(
    '/organization',
    {
      config: { access: { role: 'admin', scope: 'write' }, entityTag: true },
      schema: {
        operationId: 'updateOrganization',
        tags: ['Administration'],
        summary: "Change the caller's organization",
        description:
          'keyReveal "never" also deletes all stored plaintexts at once, except those of pending claims. This cannot be undone.',
        body: organizationPatch,
        response: { 200: organizationView },
      },
    },
    async (request, reply) => {
      const by = organizationContextOf(request);
      return show(reply, await patchOrganization(transactor, by, request.body, expectedTags(request)));
    },
  );

  app.get(
    '/rate-limit',
    {
      config: { access: { role: 'admin', scope: 'read' } },
      schema: {
        operationId: 'getRateLimit',
        tags: ['Rate limits'],
        summary: "Get the organization's rate limit",
        description: limitMeaning.organization,
        response: { 200: rateLimitSchema },
      },
    },
    async (request) => rateLimitOf(await getOrganization(db, organizationOf(request))),
  );

  app.put(
    '/rate-limit',
    {
      config: { access: { role: 'admin', scope: 'write' } },
      schema: {
        operationId: 'putRateLimit',
        tags: ['Rate limits'],
        summary: "Set the organization's rate limit",
        description: limitMeaning.organization,
        body: rateLimitSchema,
        response: { 200: rateLimitSchema },
      },
    },
    async (request) => transact(transactor, organizationContextOf(request), (work) => putRateLimit(work, request.body)),
  );
};

/** All organizations, for operators. */
export const operatorOrganizationRoutes: FastifyPluginAsyncZod<{ transactor: Transactor }> = async (
  app,
  { transactor },
) => {
  const { db } = transactor;
  const params = z.object({ organizationId: idParam("The organization's id.") });

  app.get(
    '/organizations',
    {
      config: { access: { role: 'operator', scope: 'read' }, problems: ['cursor_invalid'] },
      schema: {
        operationId: 'listOrganizations',
        tags: ['Administration'],
        summary: 'List all organizations, newest first',
        querystring: z.strictObject(pageQuery),
        response: { 200: pageOf('OrganizationPage', organizationView) },
      },
    },
    async (request) => {
      const { limit, cursor } = request.query;
      const before = decodeCursor(listOf(request), cursor, isOrganizationId);
      return toPage(listOf(request), await listOrganizations(db, { limit, before }), limit, (item) => item.id, toView);
    },
  );

  app.post(
    '/organizations',
    {
      config: { access: { role: 'operator', scope: 'write' }, idempotencyKey: 'taken', entityTag: true },
      schema: {
        operationId: 'createOrganization',
        tags: ['Administration'],
        summary: 'Create an organization',
        description:
          'To create its first admin, call POST /v1/access-tokens with the new organization in Latchkey-Organization.',
        body: newOrganization,
        response: { 201: organizationView },
      },
    },
    async (request, reply) => {
      const by = { ...actorContextOf(request), organizationId: newId('org') };
      return app.runOnce(request, reply, by, async (work) => {
        const organization = await addOrganization(work, request.body);
        return {
          view: toView(organization),
          location: `/v1/organizations/${organization.id}`,
          etag: entityTagOf(organization),
        };
      });
    },
  );

  app.get(
    '/organizations/:organizationId',
    {
      config: { access: { role: 'operator', scope: 'read' }, entityTag: true },
      schema: {
        operationId: 'getOrganizationById',
        tags: ['Administration'],
        summary: 'Get an organization',
        params,
        response: { 200: organizationView },
      },
    },
    async (request, reply) => show(reply, await getOrganization(db, request.params.organizationId)),
  );

  app.patch(
    '/organizations/:organizationId',
    {
      config: { access: { role: 'operator', scope: 'write' }, entityTag: true },
      schema: {
        operationId: 'updateOrganizationById',
        tags: ['Administration'],
        summary: 'Change an organization',
        params,
        body: organizationPatch,
        response: { 200: organizationView },
      },
    },
    async (request, reply) => {
      const by = { ...actorContextOf(request), organizationId: request.params.organizationId as OrganizationId };
      return show(reply, await patchOrganization(transactor, by, request.body, expectedTags(request)));
    },
  );
};
