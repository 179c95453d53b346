import { Problem } from '../core/errors.ts';
import { type RestoreWindows, windowEnd } from '../core/restore-window.ts';
import type { RecoveryStatus } from '../db/schema.ts';

/** The rules of recovery requests, without a database. */

export const recoveryStatuses = ['open', 'approved', 'declined'] as const satisfies readonly RecoveryStatus[];

/** An answer is due within a day. */
const answerDueSeconds = 86_400;

/** An answer that comes after what was deleted is purged helps nobody, so it is due before that. */
export function respondBy(deletedAt: Date, now: Date, { retentionSeconds }: RestoreWindows): Date {
  const due = windowEnd(now, answerDueSeconds);
  const kept = windowEnd(deletedAt, retentionSeconds);
  return kept < due ? kept : due;
}

export function isOverdue(request: { status: RecoveryStatus; respond_by: Date }, now: Date): boolean {
  return request.status === 'open' && request.respond_by < now;
}

/** @throws Problem `conflict`: an answer is given once */
export function requireOpen(request: { id: string; status: RecoveryStatus; answered_at: Date | null }): void {
  if (request.status === 'open') return;
  throw new Problem(
    'conflict',
    `Recovery request ${request.id} was ${request.status} at ${request.answered_at?.toISOString()}.`,
  );
}
