import { setTimeout as delay } from 'node:timers/promises';
import { isAuthenticKey, keyMac } from '../auth/record-mac.ts';
import type { Actor } from '../core/actor.ts';
import type { Happening } from '../core/events.ts';
import type { KeyId } from '../core/ids.ts';
import type { Keyring } from '../crypto/keyring.ts';
import { SealBroken, seal, unseal } from '../crypto/seal.ts';
import { tagOf } from '../crypto/tag.ts';
import { type Transactor, transact } from '../db/work.ts';
import { record } from '../history/record.ts';
import { sealBinding } from './mint.ts';
import { countStaleKeys, lockStaleKeys, type RenewedKey, type StaleKey, storeRenewedKeys } from './rekey-store.ts';

/** A key that stays as it is, because its row or its sealed value cannot be trusted. */
export interface UnopenedKey {
  id: KeyId;
  reason: SealBroken['reason'] | 'row_not_authentic';
}

export interface RekeyResult {
  renewed: number;
  unopened: UnopenedKey[];
  /** Left for the next run, because somebody else held them locked all the time. */
  locked: number;
  /** Made under another entry while this ran: some process has another primary. */
  since: number;
}

interface RekeyDeps {
  transactor: Transactor;
  keyring: Keyring;
  /** Told after each batch. */
  onProgress: (progress: { done: number; total: number }) => void;
}

const keysInBatch = 100;
const lookAgainAfterMs = 250;
const lockedAllowedMs = 10_000;

const by = {
  actor: { type: 'system', id: 'rekey', name: 'rekey', email: null } satisfies Actor,
  organizationId: null,
  request: null,
};

/**
 * Renews the MAC of every key under the keyring's primary entry, and its sealed value and tag where the plaintext is kept.
 * Short transactions beside a running service; a run that was killed is continued by the next. Plaintexts are opened, so
 * the start is recorded before the first of them.
 */
export async function rekey({ transactor, keyring, onProgress }: RekeyDeps): Promise<RekeyResult> {
  const { db } = transactor;
  const primary = keyring.primary.id;
  const { count: total, lastId } = await countStaleKeys(db, primary);
  if (lastId === null) return { renewed: 0, unopened: [], locked: 0, since: 0 };
  await recordAlone(transactor, { action: 'keyring.rekey_started', details: { primary, keys: total } });
  onProgress({ done: 0, total });
  let renewed = 0;
  for (let lockedForMs = 0; ; lockedForMs += lookAgainAfterMs) {
    const before = renewed;
    const unopened = await takePass(transactor, keyring, lastId, (count) => {
      renewed += count;
      onProgress({ done: renewed, total });
    });
    if (renewed > before) lockedForMs = 0;
    const left = await countStaleKeys(db, primary, lastId);
    const locked = Math.max(0, left.count - unopened.length);
    if (locked === 0 || lockedForMs >= lockedAllowedMs) {
      const details = { primary, keys: renewed, unopened: unopened.length, locked };
      await recordAlone(transactor, { action: 'keyring.rekeyed', details });
      const since = (await countStaleKeys(db, primary)).count - left.count;
      return { renewed, unopened, locked, since };
    }
    await delay(lookAgainAfterMs);
  }
}

async function recordAlone(transactor: Transactor, happening: Happening): Promise<void> {
  await transact(transactor, by, async (work) => record(work, happening));
}

/** Goes over all of them once, but for those that are locked at that moment. */
async function takePass(
  transactor: Transactor,
  keyring: Keyring,
  upTo: KeyId,
  onRenewed: (count: number) => void,
): Promise<UnopenedKey[]> {
  const unopened: UnopenedKey[] = [];
  for (let after = ''; ; ) {
    const batch = await transact(transactor, by, async ({ tx }) => {
      const stale = await lockStaleKeys(tx, keyring.primary.id, { after, upTo, limit: keysInBatch });
      const tried = stale.map((key) => renew(keyring, key));
      const renewed = tried.filter((key) => 'mac' in key);
      await storeRenewedKeys(tx, keyring.primary.id, renewed);
      return { lastId: stale.at(-1)?.id, renewed: renewed.length, unopened: tried.filter((key) => 'reason' in key) };
    });
    if (batch.lastId === undefined) return unopened;
    after = batch.lastId;
    unopened.push(...batch.unopened);
    onRenewed(batch.renewed);
  }
}

function renew(keyring: Keyring, key: StaleKey): RenewedKey | UnopenedKey {
  const { id, mac_keyring_id: macId, sealed, sealed_keyring_id: keyringId } = key;
  // A new MAC would vouch for a row that nothing vouches for now.
  if (macId === null || keyring.get(macId) === undefined) return { id, reason: 'unknown_keyring_entry' };
  if (!isAuthenticKey(keyring, key)) return { id, reason: 'row_not_authentic' };
  if (sealed === null || keyringId === null) return { id, ...keyMac(keyring, key), sealed: null, tag: null };
  const binding = sealBinding(key.organization_id, id);
  try {
    const plaintext = unseal(keyring, { keyringId, sealed }, binding);
    const tag = tagOf(keyring.primary, plaintext);
    const mac = keyMac(keyring, { ...key, tag, tag_keyring_id: keyring.primary.id });
    return { id, ...mac, sealed: seal(keyring, plaintext, binding).sealed, tag };
  } catch (error) {
    if (error instanceof SealBroken) return { id, reason: error.reason };
    throw error;
  }
}
