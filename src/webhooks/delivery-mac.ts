import type { Keyring } from '../crypto/keyring.ts';
import { isAuthentic, type MacColumns, type MacParts, macOf } from '../crypto/mac.ts';
import type { DeliveryId, WebhookId } from '../domain/ids.ts';

/** What is told to whom: an event, by the text that history has of it, and an endpoint. */
export interface Told {
  id: DeliveryId;
  endpointId: WebhookId;
  sequence: number;
  action: string;
  /** The event's canonical text, which names its organization. */
  canonical: string;
}

/** Authenticates a delivery that is about to be written. */
export function deliveryMac(keyring: Keyring, told: Told): MacColumns {
  return macOf(keyring.primary, partsOf(told));
}

/**
 * Whether a stored delivery was written with the keyring, about this very event. A keyring entry that is gone vouches for
 * nothing, also where it is named as lost: a delivery is short-lived, and to send a forged one cannot be undone.
 */
export function isDeliveryAuthentic(keyring: Keyring, columns: MacColumns, told: Told): boolean {
  return keyring.get(columns.mac_keyring_id) !== undefined && isAuthentic(keyring, columns, partsOf(told));
}

function partsOf({ id, endpointId, sequence, action, canonical }: Told): MacParts {
  return ['webhook_delivery', id, endpointId, sequence, action, canonical];
}
