import { type Selectable, type SqlBool, sql } from 'kysely';
import type { Db, Tx } from '../database/client.ts';
import type { RecoveryRequestsTable, RecoveryStatus } from '../database/tables/recovery-requests.ts';
import type { Actor } from '../domain/actor.ts';
import { requireFound } from '../domain/errors.ts';
import { isId, type KeyId, type OrganizationId, type PartnerId, type RecoveryRequestId } from '../domain/ids.ts';

export type RecoveryRequest = Selectable<RecoveryRequestsTable>;

const columns = [
  'id',
  'organization_id',
  'key_id',
  'partner_id',
  'subject_deleted_at',
  'details',
  'status',
  'respond_by',
  'created_at',
  'created_by',
  'answered_at',
  'answered_by',
  'note',
] as const;

/**
 * @param organizationId null for any organization
 * @throws Problem `not_found`
 */
export async function getRecoveryRequest(
  db: Db,
  organizationId: OrganizationId | null,
  id: string,
): Promise<RecoveryRequest> {
  return requireFound(await select(db, organizationId, id).executeTakeFirst(), 'recovery request');
}

/** Locks a request for its answer. @throws Problem `not_found` */
export async function lockRecoveryRequest(
  tx: Tx,
  organizationId: OrganizationId,
  id: string,
): Promise<RecoveryRequest> {
  return requireFound(await select(tx, organizationId, id).forNoKeyUpdate().executeTakeFirst(), 'recovery request');
}

function select(db: Db, organizationId: OrganizationId | null, id: string) {
  const query = db
    .selectFrom('recovery_requests')
    .select(columns)
    .where('id', '=', id as RecoveryRequestId);
  return organizationId === null ? query : query.where('organization_id', '=', organizationId);
}

/** The key or partner to restore. */
export type RecoverySubject = { keyId: KeyId } | { partnerId: PartnerId };

/** The open request about a subject. Lock the subject before calling this to add a request. */
export async function findOpenRequest(tx: Tx, subject: RecoverySubject): Promise<RecoveryRequest | undefined> {
  const query = tx.selectFrom('recovery_requests').select(columns).where('status', '=', 'open');
  return (
    'keyId' in subject ? query.where('key_id', '=', subject.keyId) : query.where('partner_id', '=', subject.partnerId)
  ).executeTakeFirst();
}

export interface RecoveryFilter {
  /** Null for all organizations. */
  organizationId: OrganizationId | null;
  status: RecoveryStatus | undefined;
}

/** Newest first, up to `limit + 1`. */
export async function listNewest(
  db: Db,
  filter: RecoveryFilter,
  page: { limit: number; before: RecoveryRequestId | undefined },
): Promise<RecoveryRequest[]> {
  const query = filtered(db, filter)
    .orderBy('id', 'desc')
    .limit(page.limit + 1);
  return (page.before === undefined ? query : query.where('id', '<', page.before)).execute();
}

/**
 * A request's position by urgency: open requests by due time, then answered ones, newest first. The passage of time
 * does not change the order, so no page misses a request.
 */
export type Urgency = `open/${number}/${RecoveryRequestId}` | `answered/${RecoveryRequestId}`;

export function urgencyOf({ id, status, respond_by: due }: RecoveryRequest): Urgency {
  return status === 'open' ? `open/${due.getTime()}/${id}` : `answered/${id}`;
}

export function isUrgency(text: string): text is Urgency {
  const [, due, id] = /^(?:open\/([0-9]{1,15})|answered)\/([a-z0-9_]+)$/.exec(text) ?? [];
  return id !== undefined && isId('recovery', id) && (due === undefined || String(Number(due)) === due);
}

/** Up to `limit + 1` requests. Answered requests have no due time, and nulls sort last. */
export async function listByUrgency(
  db: Db,
  filter: RecoveryFilter,
  page: { limit: number; after: Urgency | undefined },
): Promise<RecoveryRequest[]> {
  const query = filtered(db, filter)
    .orderBy(sql`case status when 'open' then respond_by end`)
    .orderBy(sql`case status when 'open' then id end`)
    .orderBy('id', 'desc')
    .limit(page.limit + 1);
  return (page.after === undefined ? query : query.where(isBeyond(page.after))).execute();
}

function isBeyond(urgency: Urgency) {
  const [group, ...rest] = urgency.split('/');
  const id = rest.at(-1);
  if (group === 'answered') return sql<SqlBool>`status <> 'open' and id < ${id}`;
  return sql<SqlBool>`(status <> 'open' or (respond_by, id) > (${new Date(Number(rest[0]))}, ${id}))`;
}

function filtered(db: Db, { organizationId, status }: RecoveryFilter) {
  const all = db.selectFrom('recovery_requests').select(columns);
  const own = organizationId === null ? all : all.where('organization_id', '=', organizationId);
  return status === undefined ? own : own.where('status', '=', status);
}

export type NewRecoveryRequest = Omit<RecoveryRequest, 'status' | 'answered_at' | 'answered_by' | 'note'>;

export async function insertRecoveryRequest(tx: Tx, request: NewRecoveryRequest): Promise<RecoveryRequest> {
  return tx
    .insertInto('recovery_requests')
    .values({ ...request, status: 'open', created_by: JSON.stringify(request.created_by) })
    .returning(columns)
    .executeTakeFirstOrThrow();
}

export interface Answer {
  status: 'approved' | 'declined';
  at: Date;
  by: Actor;
  note: string | null;
}

export async function markAnswered(tx: Tx, id: RecoveryRequestId, answer: Answer): Promise<RecoveryRequest> {
  return tx
    .updateTable('recovery_requests')
    .set({
      status: answer.status,
      answered_at: answer.at,
      answered_by: JSON.stringify(answer.by),
      note: answer.note,
    })
    .where('id', '=', id)
    .returning(columns)
    .executeTakeFirstOrThrow();
}

/** The number of open requests of all organizations, and of those whose answer is overdue. */
export async function countOpen(db: Db, now: Date): Promise<{ open: number; overdue: number }> {
  const { rows } = await sql<{ open: number; overdue: number }>`
    select count(*) as open, count(*) filter (where respond_by < ${now}) as overdue
    from recovery_requests where status = 'open'`.execute(db);
  return rows[0] ?? { open: 0, overdue: 0 };
}
