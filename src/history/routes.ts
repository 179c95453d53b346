import type { FastifyPluginAsyncZod } from 'fastify-type-provider-zod';
import { z } from 'zod';
import { Problem } from '../core/errors.ts';
import type { OrganizationId } from '../core/ids.ts';
import { decodeCursor, type Page, toPage } from '../core/page.ts';
import type { Db } from '../db/client.ts';
import { createAtOnce, onceClosed, organizationGroupOf } from '../http/at-once.ts';
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
import { listRefusals, type RefusalFilter } from './refusals-store.ts';
import { isRefusalId, refusalCodes, refusalView, toRefusalView } from './refusals-view.ts';
import { someDifferences } from './state-differences.ts';
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

const eventPage = pageOf(eventView)
  .extend({ class: z.enum(['events']) })
  .meta({ id: 'EventPage' });
const refusalPage = pageOf(refusalView)
  .extend({ class: z.enum(['refused']) })
  .meta({ id: 'RefusedAttemptsPage' });

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

/** Which filter is for which class only, and why the other one has nothing to look for. */
const filtersOf = {
  events: {
    keyId: 'a refused attempt is about no key; one that was made with a key is found by actorId',
    partnerId: 'a refused attempt is about no partner',
    action: 'an action is what was done, and a refused attempt did nothing; use operation',
  },
  refused: {
    operation: 'events are found by action',
    code: 'an event was not refused',
  },
} as const;

const historyFilter = z
  .strictObject({
    ...pageQuery,
    class: z
      .enum(['events', 'refused'])
      .default('events')
      .meta({ description: '`refused`: attempts that were refused with 403 or 429, counted by the hour, not events.' }),
    keyId: idSchema('key').optional(),
    partnerId: idSchema('partner').optional(),
    actorId: z
      .string()
      .max(1_000)
      .optional()
      .meta({ description: 'Who acted: the id of an access token, or issuer#subject.' }),
    action: z.enum(historyActions).optional(),
    operation: z.string().max(100).optional().meta({ description: 'Of refused attempts: the operationId.' }),
    code: z.enum(refusalCodes).optional().meta({ description: 'Of refused attempts: with what.' }),
    ...timeFilter,
  })
  .superRefine((query, context) => {
    const foreign = filtersOf[query.class === 'events' ? 'refused' : 'events'];
    for (const [name, why] of Object.entries(foreign)) {
      if (query[name as keyof typeof query] === undefined) continue;
      context.addIssue({ code: 'custom', path: [name], message: `does not go with class=${query.class}: ${why}` });
    }
  });

const stateDifferenceView = z
  .object({
    id: z.string().meta({ example: 'key_01kdyq6yqpe8xrktxmjrcgctsj' }),
    member: z.string().meta({
      description: 'Which member differs, in the words of the API. `id`: the record is known to one of the two alone.',
      example: 'expiresAt',
    }),
    history: z.unknown().meta({ description: 'What its events give.', example: '2026-12-31T00:00:00.000Z' }),
    table: z.unknown().meta({ description: 'What its row says.', example: null }),
  })
  .meta({ id: 'StateDifference' });

const verdictView = z
  .object({
    valid: z.boolean(),
    events: z.int(),
    head: hashView.nullable(),
    firstBadSequence: z.int().nullable(),
    stateDifferences: z.array(stateDifferenceView).meta({
      description:
        'Keys, partners, access tokens and the organization itself, where a row says something else than its events: ' +
        'at most 100.',
    }),
  })
  .meta({
    id: 'ChainVerdict',
    example: { valid: true, events: 42, head: 'ab'.repeat(32), firstBadSequence: null, stateDifferences: [] },
  });

export const historyRoutes: FastifyPluginAsyncZod<{ db: Db }> = async (app, { db }) => {
  app.get(
    '/history',
    {
      config: { access: { role: 'admin', scope: 'read', installation: true }, problems: ['cursor_invalid'] },
      schema: {
        operationId: 'listHistory',
        tags: ['History'],
        summary: 'Who did what, newest first',
        description:
          "An operator that names no organization reads the installation's own history. `class=refused` lists refused " +
          'attempts instead, with other entries.',
        querystring: historyFilter,
        response: { 200: z.discriminatedUnion('class', [eventPage, refusalPage]) },
      },
    },
    async (request) => {
      const { actsIn } = accessTokenOf(request);
      const { limit, cursor, class: wanted, operation, code, ...filter } = request.query;
      if (wanted === 'events') return { class: wanted, ...(await readPage(actsIn, filter, { limit, cursor })) };
      const { actorId: callerId, from, to } = filter;
      const refusals = { callerId, operation, code, from, to };
      return { class: wanted, ...(await readRefusals(actsIn, refusals, { limit, cursor })) };
    },
  );

  const verifications = createAtOnce({
    what: 'verifications of this history',
    inAll: 8,
    each: 2,
    retryAfterSeconds: 5,
  });
  app.get(
    '/history/verify',
    {
      config: { access: { role: 'admin', scope: 'read', installation: true }, problems: ['overloaded'] },
      schema: {
        operationId: 'verifyHistory',
        tags: ['History'],
        summary: 'Recompute the whole chain',
        description:
          'firstBadSequence is the first place at which the chain is not as it was written. ' +
          'stateDifferences names what has been changed in the tables without an event. ' +
          'A rewrite of the whole chain shows only against a checkpoint that was kept elsewhere.',
        response: { 200: verdictView },
      },
    },
    async (request, reply) => {
      const leave = verifications.enter(organizationGroupOf(request));
      const gone = new AbortController();
      const closed = new Problem('bad_request', 'The caller has closed the connection before the reply.');
      onceClosed(reply.raw, () => gone.abort(closed));
      const chain = chainOf(accessTokenOf(request).actsIn);
      const { verdict, differences: stateDifferences } = await verifyWithState(chain, gone.signal).finally(leave);
      const { events, head, flaw } = verdict;
      return {
        valid: flaw === undefined && stateDifferences.length === 0,
        events,
        head: events === 0 ? null : head.toString('hex'),
        firstBadSequence: flaw?.sequence ?? null,
        stateDifferences,
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

  async function verifyWithState(chain: string, signal: AbortSignal) {
    const verdict = await verifyChain(db, chain, { signal });
    const { differences } = await someDifferences(db, chain, signal);
    return { verdict, differences };
  }

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

  async function readRefusals(
    organizationId: OrganizationId | null,
    filter: RefusalFilter,
    { limit, cursor }: { limit: number; cursor?: string | undefined },
  ) {
    const before = decodeCursor(cursor, isRefusalId);
    const refusals = await listRefusals(db, organizationId, filter, { limit, before });
    return toPage(refusals, limit, ({ id }) => id, toRefusalView);
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
