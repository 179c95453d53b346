import type { KeyId } from '../../domain/ids.ts';
import type { LeakResponse } from './organizations.ts';

/** Marks that an event was recorded because a key was reported as leaked at this place on this day. */
export interface LeakReportsTable {
  key_id: KeyId;
  /** Its start, in UTC. */
  day: Date;
  /** SHA-256 of where the key was found. */
  place: Buffer;
  /** What the report did. */
  action: LeakResponse;
}
