/** How far a chain of history was found sound. The MAC keeps others than Latchkey from shortening a verification. */
export interface VerifiedPointsTable {
  chain: string;
  sequence: number;
  hash: Buffer;
  verified_at: Date;
  /** When the last sound verification of the whole chain began. Null after a flaw: the next one reads the whole chain. */
  fully_verified_at: Date | null;
  mac: Buffer;
  mac_keyring_id: string;
}
