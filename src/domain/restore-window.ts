import { Problem } from './errors.ts';

/** How long what was deleted can come back, in seconds from its deletion. */
export interface RestoreWindows {
  /** An admin can undo the deletion. */
  undoWindowSeconds: number;
  /** An operator can, through a recovery request; after that it is purged. */
  retentionSeconds: number;
}

/** Who brings back: an admin that undoes the deletion, or an operator that answers a recovery request. */
export type RestoreWay = 'undo' | 'recovery';

/** A window is open until this moment, and no longer at it. */
export function windowEnd(deletedAt: Date, seconds: number): Date {
  return new Date(deletedAt.getTime() + seconds * 1000);
}

/**
 * @param what how the detail names it, such as `Key key_…`
 * @throws Problem `not_restorable`, saying what is still possible
 */
export function requireOpenWindow(
  what: string,
  deletedAt: Date,
  { way, windows, now }: { way: RestoreWay; windows: RestoreWindows; now: Date },
): void {
  const kept = windowEnd(deletedAt, windows.retentionSeconds);
  if (now >= kept) {
    throw new Problem(
      'not_restorable',
      `${what} was deleted at ${deletedAt.toISOString()} and could be brought back until ${kept.toISOString()}.`,
    );
  }
  const undoable = windowEnd(deletedAt, windows.undoWindowSeconds);
  if (way === 'undo' && now >= undoable) {
    throw new Problem(
      'not_restorable',
      `${what} was deleted at ${deletedAt.toISOString()}, and an admin could undo that until ${undoable.toISOString()}. ` +
        `An operator can bring it back until ${kept.toISOString()}: open a recovery request with ` +
        'POST /v1/recovery-requests.',
    );
  }
}
