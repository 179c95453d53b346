import type { RecoveryStatus } from '../database/tables/recovery-requests.ts';
import { Problem } from '../domain/errors.ts';
import { type RestoreWindows, windowEnd } from '../domain/restore-window.ts';
import { dayMs } from '../lib/durations.ts';

/** Rules of recovery requests that need no database. */

export const recoveryStatuses = ['open', 'approved', 'declined'] as const satisfies readonly RecoveryStatus[];

/** When an answer is due: within a day, and before the subject is purged. */
export function respondBy(deletedAt: Date, now: Date, { retentionSeconds }: RestoreWindows): Date {
  const due = new Date(now.getTime() + dayMs);
  const purgedFrom = windowEnd(deletedAt, retentionSeconds);
  return purgedFrom < due ? purgedFrom : due;
}

export function isOverdue(request: { status: RecoveryStatus; respond_by: Date }, now: Date): boolean {
  return request.status === 'open' && request.respond_by < now;
}

/** Rejects a second answer. @throws Problem `conflict` */
export function requireOpen(request: { id: string; status: RecoveryStatus; answered_at: Date | null }): void {
  if (request.status === 'open') return;
  throw new Problem(
    'conflict',
    `Recovery request ${request.id} was ${request.status} at ${request.answered_at?.toISOString()}.`,
  );
}
