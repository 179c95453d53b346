import { Problem } from './errors.ts';

/** How long a deleted key or partner can be restored, in seconds from its deletion. */
export interface RestoreWindows {
  /** For an admin. */
  undoWindowSeconds: number;
  /** For an operator, through a recovery request. The key or partner is purged afterwards. */
  retentionSeconds: number;
}

/** `undo`: an admin restores directly. `recovery`: an operator approves a recovery request. */
export type RestoreMethod = 'undo' | 'recovery';

/** The end of a restore window, exclusive. */
export function windowEnd(deletedAt: Date, seconds: number): Date {
  return new Date(deletedAt.getTime() + seconds * 1000);
}

/**
 * Checks that the restore window is open.
 * @param subject its name for the error, such as `Key key_…`
 * @throws Problem `not_restorable`, with the remaining options
 */
export function requireOpenWindow(
  subject: string,
  deletedAt: Date,
  { method, windows, now }: { method: RestoreMethod; windows: RestoreWindows; now: Date },
): void {
  const kept = windowEnd(deletedAt, windows.retentionSeconds);
  if (now >= kept) {
    throw new Problem(
      'not_restorable',
      `${subject} was deleted at ${deletedAt.toISOString()} and could be restored until ${kept.toISOString()}.`,
    );
  }
  const undoable = windowEnd(deletedAt, windows.undoWindowSeconds);
  if (method === 'undo' && now >= undoable) {
    throw new Problem(
      'not_restorable',
      `${subject} was deleted at ${deletedAt.toISOString()}. Admins could restore it until ${undoable.toISOString()}. ` +
        `An operator can restore it until ${kept.toISOString()}: create a recovery request with ` +
        'POST /v1/recovery-requests.',
    );
  }
}
