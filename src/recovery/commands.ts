import type { Db } from '../database/client.ts';
import type { ActorContext, OrganizationContext, Work } from '../database/work.ts';
import { Problem } from '../domain/errors.ts';
import { type KeyId, newId, type PartnerId } from '../domain/ids.ts';
import { type RestoreWindows, requireOpenWindow } from '../domain/restore-window.ts';
import { record } from '../history/record.ts';
import { requireEligibleOwner, requireRestorableKey } from '../keys/policy.ts';
import { restoreKey } from '../keys/restore-commands.ts';
import { getKeyOwner, lockKey } from '../keys/store.ts';
import { requireDeletedPartner } from '../partners/policy.ts';
import { restorePartner } from '../partners/restore-commands.ts';
import { getPartner, lockPartner } from '../partners/store.ts';
import { requireOpen, respondBy } from './policy.ts';
import {
  type Answer,
  findOpenRequest,
  getRecoveryRequest,
  insertRecoveryRequest,
  lockRecoveryRequest,
  markAnswered,
  type RecoveryRequest,
  type RecoverySubject,
} from './store.ts';

/**
 * Requests that an operator restores a key or partner. Only one open request per key or partner is allowed.
 * @throws Problem `not_found`, `conflict` (the subject is live, or a request is open), `not_restorable`
 */
export async function requestRecovery(
  work: Work<OrganizationContext>,
  { subject, details }: { subject: RecoverySubject; details: string },
  windows: RestoreWindows,
): Promise<RecoveryRequest> {
  const deletedAt = await lockDeleted(work, subject, windows);
  await closeEarlier(work, await findOpenRequest(work.tx, subject), deletedAt);
  const request = await insertRecoveryRequest(work.tx, {
    id: newId('recovery'),
    organization_id: work.by.organizationId,
    key_id: 'keyId' in subject ? subject.keyId : null,
    partner_id: 'partnerId' in subject ? subject.partnerId : null,
    subject_deleted_at: deletedAt,
    details,
    respond_by: respondBy(deletedAt, work.now, windows),
    created_at: work.now,
    created_by: work.by.actor,
  });
  record(work, {
    action: 'recovery.requested',
    ...(await subjectOf(work, request)),
    details: { recoveryRequestId: request.id, details, respondBy: request.respond_by.toISOString() },
  });
  return request;
}

/** Locks the subject and checks that it can be restored. @returns when it was deleted */
async function lockDeleted(
  work: Work<OrganizationContext>,
  subject: RecoverySubject,
  windows: RestoreWindows,
): Promise<Date> {
  const { tx, now, by } = work;
  const conditions = { method: 'recovery', windows, now } as const;
  if ('keyId' in subject) {
    const key = await lockKey(tx, by.organizationId, subject.keyId);
    const deletedAt = requireRestorableKey(key, conditions);
    requireEligibleOwner(key, key.partner_id && (await getPartner(tx, by.organizationId, key.partner_id)));
    return deletedAt;
  }
  const partner = await lockPartner(tx, by.organizationId, subject.partnerId);
  const deletedAt = requireDeletedPartner(partner);
  requireOpenWindow(`Partner ${partner.id}`, deletedAt, conditions);
  return deletedAt;
}

/**
 * Declines an open request about an earlier deletion that was undone meanwhile.
 * @throws Problem `conflict` if the open request is about the same deletion
 */
async function closeEarlier(
  work: Work<OrganizationContext>,
  open: RecoveryRequest | undefined,
  deletedAt: Date,
): Promise<void> {
  if (open === undefined) return;
  if (open.subject_deleted_at.getTime() === deletedAt.getTime()) {
    throw new Problem('conflict', `Recovery request ${open.id} for the same deletion is still open.`, {
      members: { recoveryRequestId: open.id },
    });
  }
  const note = 'The key or partner was restored before this request was answered.';
  await answer(work, open, { status: 'declined', note });
}

/**
 * Approves a request and restores its subject in the same transaction. If that fails, the request stays open.
 * @throws Problem `not_found`, `conflict` (answered already, or the subject is live), `not_restorable`, `row_full`,
 * `partner_exists`
 */
export async function approveRecovery(
  work: Work<OrganizationContext>,
  requestId: string,
  note: string | null,
  windows: RestoreWindows,
): Promise<RecoveryRequest> {
  const request = await lockOpenRequest(work, requestId);
  const recovery = { requestId: request.id, deletedAt: request.subject_deleted_at };
  const restoring = { windows, recovery };
  const { key_id: keyId, partner_id: partnerId } = request;
  const answered = await answer(work, request, { status: 'approved', note });
  if (keyId !== null) await restoreKey(work, keyId, restoring);
  if (partnerId !== null) await restorePartner(work, partnerId, restoring);
  return answered;
}

/** @throws Problem `not_found`, `conflict` (answered already) */
export async function declineRecovery(
  work: Work<OrganizationContext>,
  requestId: string,
  note: string,
): Promise<RecoveryRequest> {
  return answer(work, await lockOpenRequest(work, requestId), { status: 'declined', note });
}

/**
 * The context for an answer: it is recorded in the requesting organization, even if the operator did not select that
 * one.
 */
export async function answerContext(db: Db, by: ActorContext, requestId: string): Promise<OrganizationContext> {
  const { organization_id: organizationId } = await getRecoveryRequest(db, by.organizationId, requestId);
  return { ...by, organizationId };
}

async function lockOpenRequest(work: Work<OrganizationContext>, requestId: string): Promise<RecoveryRequest> {
  const request = await lockRecoveryRequest(work.tx, work.by.organizationId, requestId);
  requireOpen(request);
  return request;
}

/** Stores and records the answer to a locked request. */
async function answer(
  work: Work<OrganizationContext>,
  request: RecoveryRequest,
  { status, note }: Pick<Answer, 'status' | 'note'>,
): Promise<RecoveryRequest> {
  const subject = await subjectOf(work, request);
  record(work, { action: `recovery.${status}`, ...subject, details: { recoveryRequestId: request.id, note } });
  return markAnswered(work.tx, request.id, { status, at: work.now, by: work.by.actor, note });
}

/** The ids for the event. The event of a partner's key also names the partner. */
async function subjectOf(
  { tx, by }: Work<OrganizationContext>,
  request: RecoveryRequest,
): Promise<{ keyId: KeyId | null; partnerId: PartnerId | null }> {
  const { key_id: keyId, partner_id: partnerId } = request;
  return keyId === null ? { keyId, partnerId } : getKeyOwner(tx, by.organizationId, keyId);
}
