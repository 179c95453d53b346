import type { FastifyRequest } from 'fastify';
import type { FastifyPluginAsyncZod } from 'fastify-type-provider-zod';
import { z } from 'zod';
import type { Transactor } from '../database/work.ts';
import { Problem } from '../domain/errors.ts';
import type { OrganizationId } from '../domain/ids.ts';
import { decodeCursor, type ListId, type PageRequest, toPage } from '../domain/page.ts';
import { createConcurrencyLimit, onceClosed, organizationGroupOf } from '../http/concurrency-limit.ts';
import { accessTokenOf, organizationOf } from '../http/guard.ts';
import { listOf } from '../http/list.ts';
import {
  idParam,
  idSchema,
  pageFields,
  pageQuery,
  queryBoolean,
  timestampInput,
  timestampView,
} from '../http/schemas.ts';
import { listRefusals, type RefusalFilter } from '../refused-requests/store.ts';
import { isRefusalId, refusalCodeSchema, refusalCodes, refusalView, toRefusalView } from '../refused-requests/view.ts';
import { isInArchive } from './archives/states.ts';
import { chainOf } from './chain.ts';
import type { Checkpoints } from './checkpoints/signing.ts';
import { type ResumeDeps, resumeVerification } from './resume.ts';
import { firstDifferences } from './state-differences.ts';
import { countOfPage, type HistoryFilter, type HistorySubject, historyKnows, isSequence, listEvents } from './store.ts';
import { hashView, historyActionSchema, listedEventView, toEventView } from './views.ts';

const eventPage = z.object({ kind: z.enum(['events']), ...pageFields(listedEventView) }).meta({ id: 'EventPage' });
const refusalPage = z
  .object({ kind: z.enum(['refused']), ...pageFields(refusalView) })
  .meta({ id: 'RefusedAttemptsPage' });
const historyPage = z.discriminatedUnion('kind', [eventPage, refusalPage]).meta({
  id: 'HistoryPage',
  discriminator: {
    propertyName: 'kind',
    mapping: { events: '#/components/schemas/EventPage', refused: '#/components/schemas/RefusedAttemptsPage' },
  },
});

type EventPage = z.infer<typeof eventPage>;

const timeFilter = {
  from: timestampInput.optional().meta({ description: 'Events at or after this time.' }),
  to: timestampInput.optional().meta({ description: 'Events before this time.' }),
};

/** Filters that apply to one kind only, with the reason shown for the other kind. */
const filtersOf = {
  events: {
    keyId: 'a refused attempt has no key; to find attempts that a key made, use actorId',
    partnerId: 'a refused attempt has no partner',
    action: 'a refused attempt has no action; use operation',
  },
  refused: {
    operation: 'an event has no operation; use action',
    code: 'an event has no refusal code',
  },
} as const;

const historyFilter = z
  .strictObject({
    ...pageQuery,
    kind: z.enum(['events', 'refused']).meta({ id: 'HistoryKind' }).default('events').meta({
      description: '`refused` lists attempts that were rejected with 403 or 429, counted per hour, instead of events.',
    }),
    keyId: idSchema('key').optional(),
    partnerId: idSchema('partner').optional(),
    actorId: z
      .string()
      .max(1_000)
      .optional()
      .meta({ description: "The actor's id: an access token's id, or issuer#subject." }),
    action: historyActionSchema.optional(),
    operation: z
      .string()
      .max(100)
      .optional()
      .meta({ description: 'The operationId of a rejected request. Only with kind=refused.' }),
    code: refusalCodeSchema
      .refine((code) => (refusalCodes as readonly string[]).includes(code), `must be one of ${refusalCodes.join(', ')}`)
      .optional()
      .meta({ description: 'The problem code of a rejected request. Only with kind=refused.' }),
    ...timeFilter,
  })
  .superRefine((query, context) => {
    const foreign = filtersOf[query.kind === 'events' ? 'refused' : 'events'];
    for (const [name, why] of Object.entries(foreign)) {
      if (query[name as keyof typeof query] === undefined) continue;
      context.addIssue({ code: 'custom', path: [name], message: `is not allowed with kind=${query.kind}: ${why}` });
    }
  });

const stateDifferenceView = z
  .object({
    id: z.string().meta({ example: 'key_01kdyq6yqpe8xrktxmjrcgctsj' }),
    member: z.string().meta({
      description: 'The API member that differs. `id` if the record exists on one side only.',
      example: 'expiresAt',
    }),
    history: z
      .unknown()
      .meta({ description: 'The value according to the events.', example: '2026-12-31T00:00:00.000Z' }),
    table: z.unknown().meta({ description: 'The value stored in the table.', example: null }),
  })
  .meta({ id: 'StateDifference' });

const verdictView = z
  .object({
    valid: z.boolean(),
    events: z.int().meta({ description: 'The number of events before the first flaw, archived ones included.' }),
    archivedEvents: z.int().meta({
      description:
        'The number of events at the beginning that the operator of the service has moved to files. They are not read; the ' +
        'chain is verified from the hash of the last of them, which is authenticated by the keyring.',
    }),
    head: hashView.nullable(),
    firstBadSequence: z.int().nullable(),
    flaws: z
      .array(
        z
          .object({ firstSequence: z.int(), lastSequence: z.int(), reason: z.string() })
          .meta({ id: 'HistoryFlaw', example: { firstSequence: 7, lastSequence: 9, reason: 'hash' } }),
      )
      .max(100)
      .meta({ description: 'Ranges of events where the chain is damaged: the first 100.' }),
    stateDifferences: z.array(stateDifferenceView).meta({
      description:
        'Keys, partners, access tokens and the organization whose table rows differ from their events: at most 100. In the ' +
        'history of the installation, also archives of history.',
    }),
    verifiedFrom: z.int().min(1).meta({
      description:
        'The sequence number of the first event that this verification read. Earlier events were verified before, or are archived.',
    }),
    fullyVerifiedAt: timestampView.nullable().meta({
      description:
        'When the last valid verification of the whole chain began. Null if there is none, or if a flaw was found since.',
    }),
    verifiedPointFlaw: z
      .string()
      .nullable()
      .meta({
        description:
          'Why the stored result of the last verification cannot be trusted. The whole chain was verified then. ' +
          'Null if there is nothing wrong with it.',
      }),
  })
  .meta({
    id: 'ChainVerdict',
    example: {
      valid: true,
      events: 42,
      archivedEvents: 0,
      head: 'ab'.repeat(32),
      firstBadSequence: null,
      flaws: [],
      stateDifferences: [],
      verifiedFrom: 1,
      fullyVerifiedAt: '2026-11-27T10:00:00.000Z',
      verifiedPointFlaw: null,
    },
  });

interface HistoryDeps {
  transactor: Pick<Transactor, 'db' | 'clock' | 'keyring'>;
}

export const historyRoutes: FastifyPluginAsyncZod<HistoryDeps> = async (app, { transactor }) => {
  const { db, keyring } = transactor;
  app.get(
    '/history',
    {
      config: { access: { role: 'admin', scope: 'read', installation: true }, problems: ['cursor_invalid'] },
      schema: {
        operationId: 'listHistory',
        tags: ['History'],
        summary: 'List who did what, newest first',
        description:
          "An operator that selects no organization reads the installation's own history. `kind=refused` lists refused " +
          'attempts instead of events. A page of large events may be shorter than `limit`: follow `nextCursor`. ' +
          'Lists stored events: old ones may be archived (`archivedEvents` of `GET /v1/history/verify`).',
        querystring: historyFilter,
        response: { 200: historyPage },
      },
    },
    async (request) => {
      const { actsIn } = accessTokenOf(request);
      const list = listOf(request);
      const { limit, cursor, kind, operation, code, ...filter } = request.query;
      if (kind === 'events') return readPage(list, actsIn, filter, { limit, cursor });
      const { actorId: callerId, from, to } = filter;
      const refusals = { callerId, operation, code, from, to };
      return { kind, ...(await readRefusals(list, actsIn, refusals, { limit, cursor })) };
    },
  );

  const verifications = createConcurrencyLimit({
    resources: 'verifications of this history',
    totalLimit: 8,
    groupLimit: 2,
    retryAfterSeconds: 5,
  });
  app.get(
    '/history/verify',
    {
      config: { access: { role: 'admin', scope: 'read', installation: true }, problems: ['overloaded'] },
      schema: {
        operationId: 'verifyHistory',
        tags: ['History'],
        summary: 'Verify the history',
        description:
          'Recomputes the hash chain. Starts after the event up to which the last verification found it valid. Starts at the ' +
          'first event if `full` is true, if the last verification of the whole chain is older than 7 days, or if anything ' +
          'contradicts the last result. firstBadSequence is the first damaged event; events and head describe the sound part ' +
          'before it. stateDifferences lists changes in the tables that have no event. ' +
          'To detect a rewrite of the whole chain, compare it with a checkpoint that was kept elsewhere.',
        querystring: z.strictObject({
          full: queryBoolean.meta({
            type: 'boolean',
            default: false,
            description:
              'Verifies the whole chain. Without it, a change of an event before `verifiedFrom` is not found.',
          }),
        }),
        response: { 200: verdictView },
      },
    },
    async (request, reply) => {
      const release = verifications.acquire(organizationGroupOf(request));
      const gone = new AbortController();
      const closed = new Problem('bad_request', 'The caller closed the connection before the reply.');
      onceClosed(reply.raw, () => gone.abort(closed));
      const chain = chainOf(accessTokenOf(request).actsIn);
      const deps = {
        ...transactor,
        onUnstored: (err: unknown) => request.log.warn({ err, chain }, 'The result of the verification is not stored.'),
      };
      const options = { isFull: request.query.full, signal: gone.signal };
      const { verdict, differences: stateDifferences } = await verifyWithState(deps, chain, options).finally(release);
      const { events, archivedEvents, head, flaws, verifiedFrom, fullyVerifiedAt, pointFlaw } = verdict;
      return {
        valid: flaws.length === 0 && stateDifferences.length === 0 && pointFlaw === undefined,
        events,
        archivedEvents,
        head: events === 0 ? null : head.toString('hex'),
        firstBadSequence: flaws[0]?.firstSequence ?? null,
        flaws,
        stateDifferences,
        verifiedFrom,
        fullyVerifiedAt: fullyVerifiedAt?.toISOString() ?? null,
        verifiedPointFlaw: pointFlaw ?? null,
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
        summary: "List a key's events, newest first",
        params: z.object({ keyId: idParam("The key's id.") }),
        querystring: z.strictObject(pageQuery),
        response: { 200: eventPage },
      },
    },
    async (request) => readSubject(request, { keyId: request.params.keyId }, request.query),
  );

  app.get(
    '/partners/:partnerId/history',
    {
      config: { access: { role: 'admin', scope: 'read' }, problems: ['cursor_invalid'] },
      schema: {
        operationId: 'listPartnerHistory',
        tags: ['History'],
        summary: 'List the events of a partner and its keys, newest first',
        params: z.object({ partnerId: idParam("The partner's id.") }),
        querystring: z.strictObject(pageQuery),
        response: { 200: eventPage },
      },
    },
    async (request) => readSubject(request, { partnerId: request.params.partnerId }, request.query),
  );

  async function verifyWithState(deps: ResumeDeps, chain: string, options: { isFull: boolean; signal: AbortSignal }) {
    const verdict = await resumeVerification(deps, chain, options);
    const { differences } = await firstDifferences(db, chain, keyring, options.signal);
    return { verdict, differences };
  }

  async function readSubject(request: FastifyRequest, subject: HistorySubject, page: PageRequest): Promise<EventPage> {
    const organizationId = organizationOf(request);
    // All events of a record may be archived: its history is then empty, and not missing.
    if (!(await historyKnows(db, organizationId, subject)) && !(await isInArchive(db, organizationId, subject))) {
      throw new Problem('not_found', "This organization's history has no event with this id.");
    }
    return readPage(listOf(request), organizationId, subject, page);
  }

  async function readRefusals(
    list: ListId,
    organizationId: OrganizationId | null,
    filter: RefusalFilter,
    { limit, cursor }: PageRequest,
  ) {
    const before = decodeCursor(list, cursor, isRefusalId);
    const refusals = await listRefusals(db, organizationId, filter, { limit, before });
    return toPage(list, refusals, limit, ({ id }) => id, toRefusalView);
  }

  async function readPage(
    list: ListId,
    organizationId: OrganizationId | null,
    filter: HistoryFilter,
    { limit, cursor }: PageRequest,
  ): Promise<EventPage> {
    const position = decodeCursor(list, cursor, isSequence);
    const beforeSequence = position === undefined ? undefined : Number(position);
    const events = await listEvents(db, organizationId, filter, { limit, beforeSequence });
    const page = toPage(list, events, countOfPage(events, limit), (event) => String(event.sequence), toEventView);
    return { kind: 'events', ...page };
  }
};

const plainText = 'text/plain; charset=utf-8';

const noteExample =
  'latchkey/org_01k9s3v5wqe8n8x4r2m6t7yb0c\n42\nn4bQgYhMfWWaL+qgxVrQFaO/TxsrC4Is0V1sFbDwCgg=\n\n' +
  '— latchkey 0tHILZHRxFNndDkNhpEMUlB2z6tnJUPc3qpD1fwB/XKatP0+nULIz6jZtdqB40nNGbkw1je1bQFgHt+3FLv56QU12gI=\n';

const keyExample =
  'latchkey+d2d1c82d+AYqI4910CfGV/VLbLTy6XXLKZwm/HZQSG/N0iAG0D29c\n' +
  '-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEAiojj3XQJ8ZX9UtstPLpdcspnCb8dlBIb83SIAbQPb1w=\n-----END PUBLIC KEY-----\n';

/** Checkpoints are meant to be kept where neither this service nor its database can change them. */
export const checkpointRoutes: FastifyPluginAsyncZod<{ checkpoints: Checkpoints }> = async (app, { checkpoints }) => {
  app.get(
    '/history/checkpoint',
    {
      config: { access: { role: 'admin', scope: 'read', installation: true }, problems: ['history_altered'] },
      schema: {
        operationId: 'getHistoryCheckpoint',
        tags: ['History'],
        summary: 'Get a signed checkpoint of the history',
        description:
          'A C2SP signed note: origin, number of events, hash of the last event in base64, and Ed25519 signatures. ' +
          'Keep it elsewhere: it proves later whether earlier events were changed or cut off. ' +
          'docs/history.md explains how. The public key is at /.well-known/latchkey-history-key.',
        produces: ['text/plain'],
        response: { 200: z.string().meta({ example: noteExample }) },
      },
    },
    async (request, reply) =>
      reply.type(plainText).send(await checkpoints.sign(chainOf(accessTokenOf(request).actsIn))),
  );
};

export const publicKeyRoutes: FastifyPluginAsyncZod<{ checkpoints: Checkpoints }> = async (app, { checkpoints }) => {
  app.get(
    '/.well-known/latchkey-history-key',
    {
      config: { access: 'public' },
      schema: {
        operationId: 'getHistoryKey',
        tags: ['History'],
        summary: 'Get the public keys that verify checkpoints',
        description:
          'For each keyring entry, the primary first: a line for signed-note tools, and the same key ' +
          'as PEM. Keep these keys apart from the checkpoints: a key fetched together with what it verifies proves nothing.',
        produces: ['text/plain'],
        response: { 200: z.string().meta({ example: keyExample }) },
      },
    },
    async (_request, reply) => reply.type(plainText).send(checkpoints.publicKeys),
  );
};
