import type { KeyId } from './ids.ts';

/** What a key has been used within an hour, as far as that is not written yet: small whole numbers, which lie in the object itself. */
export class UseCounts {
  /** Not the record that these are counted for: that may go before this is written. */
  readonly keyId: KeyId;
  /** Since 1970; 0 before anything is counted, and never another one after that: what was taken to be written may come back. */
  hour: number;
  allowed = 0;
  denied = 0;
  rateLimited = 0;
  /** Of those denied: because the key was deleted. */
  afterDeletion = 0;
  /** When the key was last allowed something, in milliseconds within the hour; -1: not in this hour. */
  lastUsed = -1;

  constructor(keyId: KeyId, hour = 0) {
    this.keyId = keyId;
    this.hour = hour;
  }
}
