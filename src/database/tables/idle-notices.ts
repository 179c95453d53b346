import type { KeyId } from '../../domain/ids.ts';

/** Marks that the suspension of an idle key was announced by an event. A key that is used again has another `idle_since`. */
export interface IdleNoticesTable {
  key_id: KeyId;
  idle_since: Date;
  announced_at: Date;
}
