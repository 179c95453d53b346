import type { FastifyPluginAsyncZod } from 'fastify-type-provider-zod';
import { z } from 'zod';
import { Problem } from '../core/errors.ts';
import type { OrganizationId } from '../core/ids.ts';
import { decodeCursor, type Page, toPage } from '../core/page.ts';
import type { Db } from '../db/client.ts';
import { accessTokenOf, organizationOf } from '../http/guard.ts';
import {
  actorView,
  idParam,
  idSchema,
  idView,
  pageOf,
  pageQuery,
  timestampInput,
  timestampView,
} from '../http/schemas.ts';
import { chainOf, type StoredEvent } from './chain.ts';
import { historyActions } from './events.ts';
import { type HistoryFilter, historyKnows, isSequence, listEvents } from './store.ts';
import { verifyChain } from './verify.ts';

const hashView = z.string().meta({ example: '9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08' });

const eventView = z
  .object({
    id: idView('event'),
    organizationId: idView('org').nullable().meta({ description: 'Null: an act of the installation itself.' }),
    sequence: z.int().meta({ description: 'Gapless within the organization, from 1.', example: 42 }),
    at: timestampView,
    action: z.string().meta({ enum: [...historyActions], example: 'key.revealed' }),
    actor: actorView,
    keyId: idView('key').nullable(),
    partnerId: idView('partner').nullable(),
    request: z
      .object({ id: z.string(), ip: z.string(), userAgent: z.string().nullable() })
      .nullable()
      .meta({
        description: 'Null: no request was involved.',
        example: { id: 'r-1', ip: '203.0.113.7', userAgent: 'curl/8.5.0' },
      }),
    details: z.record(z.string(), z.unknown()).meta({ example: { reason: 'The partner lost it' } }),
    previousHash: hashView,
    hash: hashView,
  })
  .meta({ id: 'Event', description: 'hash = SHA-256(previousHash ‖ the RFC 8785 form of all but the two hashes).' });

type EventView = z.infer<typeof eventView>;

/** The reply is made from the canonical text, which is what the hash covers; columns only filter. */
function toView(stored: StoredEvent): EventView {
  return {
    ...JSON.parse(stored.canonical),
    previousHash: stored.previous_hash.toString('hex'),
    hash: stored.hash.toString('hex'),
  };
}

const timeFilter = {
  from: timestampInput.optional().meta({ description: 'At this time or later.' }),
  to: timestampInput.optional().meta({ description: 'Before this time.' }),
};

const historyFilter = z.strictObject({
  ...pageQuery,
  keyId: idSchema('key').optional(),
  partnerId: idSchema('partner').optional(),
  actorId: z.string().max(200).optional().meta({ description: 'The id of the access token that acted.' }),
  action: z.enum(historyActions).optional(),
  ...timeFilter,
});

const verdictView = z
  .object({
    valid: z.boolean(),
    events: z.int(),
    head: hashView.nullable(),
    firstBadSequence: z.int().nullable(),
  })
  .meta({ id: 'ChainVerdict', example: { valid: true, events: 42, head: 'ab'.repeat(32), firstBadSequence: null } });

export const historyRoutes: FastifyPluginAsyncZod<{ db: Db }> = async (app, { db }) => {
  app.get(
    '/history',
    {
      config: { access: { role: 'admin', scope: 'read', installation: true }, problems: ['cursor_invalid'] },
      schema: {
        operationId: 'listHistory',
        tags: ['History'],
        summary: 'Who did what, newest first',
        description: "An operator that names no organization reads the installation's own history.",
        querystring: historyFilter,
        response: { 200: pageOf(eventView) },
      },
    },
    async (request) => {
      const { limit, cursor, ...filter } = request.query;
      return readPage(accessTokenOf(request).actsIn, filter, { limit, cursor });
    },
  );

  app.get(
    '/history/verify',
    {
      config: { access: { role: 'admin', scope: 'read', installation: true } },
      schema: {
        operationId: 'verifyHistory',
        tags: ['History'],
        summary: 'Recompute the whole chain',
        description:
          'firstBadSequence is the first place at which the chain is not as it was written. ' +
          'A rewrite of the whole chain shows only against a checkpoint that was kept elsewhere.',
        response: { 200: verdictView },
      },
    },
    async (request) => {
      const { events, head, flaw } = await verifyChain(db, chainOf(accessTokenOf(request).actsIn));
      return {
        valid: flaw === undefined,
        events,
        head: events === 0 ? null : head.toString('hex'),
        firstBadSequence: flaw?.sequence ?? null,
      };
    },
  );

  app.get(
    '/keys/:keyId/history',
    {
      config: { access: { role: 'admin', scope: 'read' }, problems: ['cursor_invalid'] },
      schema: {
        operationId: 'listKeyHistory',
        tags: ['History'],
        summary: "A key's own events, newest first",
        params: z.object({ keyId: idParam('key', 'Which key') }),
        querystring: z.strictObject(pageQuery),
        response: { 200: pageOf(eventView) },
      },
    },
    async (request) => readSubject(organizationOf(request), { keyId: request.params.keyId }, request.query),
  );

  app.get(
    '/partners/:partnerId/history',
    {
      config: { access: { role: 'admin', scope: 'read' }, problems: ['cursor_invalid'] },
      schema: {
        operationId: 'listPartnerHistory',
        tags: ['History'],
        summary: "A partner's events and those of its keys, newest first",
        params: z.object({ partnerId: idParam('partner', 'Which partner') }),
        querystring: z.strictObject(pageQuery),
        response: { 200: pageOf(eventView) },
      },
    },
    async (request) => readSubject(organizationOf(request), { partnerId: request.params.partnerId }, request.query),
  );

  async function readSubject(
    organizationId: OrganizationId,
    subject: { keyId: string } | { partnerId: string },
    page: { limit: number; cursor?: string | undefined },
  ): Promise<Page<EventView>> {
    if (!(await historyKnows(db, organizationId, subject))) {
      throw new Problem('not_found', 'There is nothing with this id in this organization, and never was.');
    }
    return readPage(organizationId, subject, page);
  }

  async function readPage(
    organizationId: OrganizationId | null,
    filter: HistoryFilter,
    { limit, cursor }: { limit: number; cursor?: string | undefined },
  ): Promise<Page<EventView>> {
    const position = decodeCursor(cursor, isSequence);
    const beforeSequence = position === undefined ? undefined : Number(position);
    const events = await listEvents(db, organizationId, filter, { limit, beforeSequence });
    return toPage(events, limit, (event) => String(event.sequence), toView);
  }
};
