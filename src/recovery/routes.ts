import type { FastifyPluginAsyncZod } from 'fastify-type-provider-zod';
import { z } from 'zod';
import type { Transactor } from '../database/work.ts';
import { isId, type RecoveryRequestId } from '../domain/ids.ts';
import { decodeCursor, toPage } from '../domain/page.ts';
import type { RestoreWindows } from '../domain/restore-window.ts';
import { accessTokenOf, actorContextOf, organizationContextOf } from '../http/guard.ts';
import { listOf } from '../http/list.ts';
import { exampleId, idParam, idSchema, pageOf, pageQuery, prose } from '../http/schemas.ts';
import { answerContext, approveRecovery, declineRecovery, requestRecovery } from './commands.ts';
import {
  getRecoveryRequest,
  isUrgency,
  listByUrgency,
  listNewest,
  type RecoveryRequest,
  type RecoverySubject,
  urgencyOf,
} from './store.ts';
import { recoveryRequestView, recoveryStatusSchema, toRecoveryRequestView } from './views.ts';

const longestText = 2_000;

const newRequest = z
  .strictObject({
    keyId: idSchema('key').optional(),
    partnerId: idSchema('partner')
      .optional()
      .meta({ description: 'Also restores the keys that were deleted with the partner.' }),
    details: prose(longestText).meta({ description: 'What the operator needs to know to decide.' }),
  })
  .refine(({ keyId, partnerId }) => (keyId === undefined) !== (partnerId === undefined), {
    error: 'must name either keyId or partnerId',
  })
  .meta({
    id: 'NewRecoveryRequest',
    example: { keyId: exampleId('key'), details: 'Deleted by mistake; the billing export needs it.' },
  });

const approvalBody = z
  .strictObject({ note: prose(longestText).optional() })
  .meta({ id: 'RecoveryApproval', example: { note: 'As agreed by phone.' } });

const refusalBody = z
  .strictObject({ note: prose(longestText).meta({ description: 'The reason, for the admin.' }) })
  .meta({ id: 'RecoveryRefusal', example: { note: 'The partner has left.' } });

export interface RecoveryRoutesOptions extends RestoreWindows {
  transactor: Transactor;
}

export const recoveryRoutes: FastifyPluginAsyncZod<RecoveryRoutesOptions> = async (app, options) => {
  const { transactor, undoWindowSeconds, retentionSeconds } = options;
  const windows = { undoWindowSeconds, retentionSeconds };
  const { db, clock } = transactor;
  const params = z.object({ recoveryRequestId: idParam("The recovery request's id.") });
  const currentView = () => {
    const now = new Date(clock.nowMs());
    return (request: RecoveryRequest) => toRecoveryRequestView(request, now);
  };

  app.get(
    '/recovery-requests',
    {
      config: { access: { role: 'admin', scope: 'read', installation: true }, problems: ['cursor_invalid'] },
      schema: {
        operationId: 'listRecoveryRequests',
        tags: ['Recovery'],
        summary: 'List recovery requests',
        description:
          'For admins: newest first. For operators: open requests by due time, then answered requests, ' +
          'newest first. An operator that selects no organization gets the requests of all organizations.',
        querystring: z.strictObject({ ...pageQuery, status: recoveryStatusSchema.optional() }),
        response: { 200: pageOf('RecoveryRequestPage', recoveryRequestView) },
      },
    },
    async (request) => {
      const { limit, cursor, status } = request.query;
      const { role, actsIn } = accessTokenOf(request);
      const filter = { organizationId: actsIn, status };
      const toView = currentView();
      if (role === 'operator') {
        const after = decodeCursor(listOf(request), cursor, isUrgency);
        return toPage(listOf(request), await listByUrgency(db, filter, { limit, after }), limit, urgencyOf, toView);
      }
      const before = decodeCursor(listOf(request), cursor, isRecoveryRequestId);
      return toPage(listOf(request), await listNewest(db, filter, { limit, before }), limit, (item) => item.id, toView);
    },
  );

  app.post(
    '/recovery-requests',
    {
      config: {
        access: { role: 'admin', scope: 'write' },
        idempotencyKey: 'taken',
        problems: ['not_found', 'conflict', 'not_restorable'],
      },
      schema: {
        operationId: 'createRecoveryRequest',
        tags: ['Recovery'],
        summary: 'Request the recovery of a deleted key or partner',
        description:
          'An operator answers the request. Possible until the retention time ends. Only one open request per key or partner is allowed.',
        body: newRequest,
        response: { 201: recoveryRequestView },
      },
    },
    async (request, reply) => {
      const { keyId, partnerId, details } = request.body;
      const subject = keyId === undefined ? { partnerId } : { keyId };
      const input = { subject: subject as RecoverySubject, details };
      const by = organizationContextOf(request);
      return app.runOnce(request, reply, by, async (work) => {
        const made = await requestRecovery(work, input, windows);
        return { view: toRecoveryRequestView(made, work.now), location: `/v1/recovery-requests/${made.id}` };
      });
    },
  );

  app.get(
    '/recovery-requests/:recoveryRequestId',
    {
      config: { access: { role: 'admin', scope: 'read', installation: true } },
      schema: {
        operationId: 'getRecoveryRequest',
        tags: ['Recovery'],
        summary: 'Get a recovery request',
        params,
        response: { 200: recoveryRequestView },
      },
    },
    async (request) => {
      const { actsIn } = accessTokenOf(request);
      const toView = currentView();
      return toView(await getRecoveryRequest(db, actsIn, request.params.recoveryRequestId));
    },
  );

  app.post(
    '/recovery-requests/:recoveryRequestId/approve',
    {
      config: {
        access: { role: 'operator', scope: 'write' },
        idempotencyKey: 'taken',
        problems: ['conflict', 'not_restorable', 'row_full', 'partner_exists', 'external_id_exists'],
      },
      schema: {
        operationId: 'approveRecoveryRequest',
        tags: ['Recovery'],
        summary: 'Approve a recovery request and restore its subject',
        description: 'If the key or partner cannot be restored, for example into a full row, the request stays open.',
        params,
        body: approvalBody.nullish(),
        response: { 200: recoveryRequestView },
      },
    },
    async (request, reply) => {
      const note = request.body?.note ?? null;
      const { recoveryRequestId } = request.params;
      const by = await answerContext(db, actorContextOf(request), recoveryRequestId);
      return app.runOnce(request, reply, by, async (work) => {
        const approved = await approveRecovery(work, recoveryRequestId, note, windows);
        return { view: toRecoveryRequestView(approved, work.now) };
      });
    },
  );

  app.post(
    '/recovery-requests/:recoveryRequestId/decline',
    {
      config: { access: { role: 'operator', scope: 'write' }, idempotencyKey: 'taken', problems: ['conflict'] },
      schema: {
        operationId: 'declineRecoveryRequest',
        tags: ['Recovery'],
        summary: 'Decline a recovery request with a reason',
        params,
        body: refusalBody,
        response: { 200: recoveryRequestView },
      },
    },
    async (request, reply) => {
      const { note } = request.body;
      const { recoveryRequestId } = request.params;
      const by = await answerContext(db, actorContextOf(request), recoveryRequestId);
      return app.runOnce(request, reply, by, async (work) => {
        const declined = await declineRecovery(work, recoveryRequestId, note);
        return { view: toRecoveryRequestView(declined, work.now) };
      });
    },
  );
};

const isRecoveryRequestId = (value: string): value is RecoveryRequestId => isId('recovery', value);
