import type { Keyring } from '../crypto/keyring.ts';
import { isAuthentic, type MacColumns, type MacParts, macOf } from '../crypto/mac.ts';
import type { DeliveryId, WebhookId } from '../domain/ids.ts';

/** The content of a delivery that its MAC covers. */
export interface DeliveryContent {
  id: DeliveryId;
  endpointId: WebhookId;
  sequence: number;
  action: string;
  /** The event's canonical text, which contains its organization. */
  canonical: string;
}

/** Computes the MAC of a new delivery. */
export function deliveryMac(keyring: Keyring, content: DeliveryContent): MacColumns {
  return macOf(keyring.primary, partsOf(content));
}

/**
 * Whether a stored delivery has a valid MAC for this event. A keyring entry that was removed verifies nothing, even one
 * that is listed as lost: deliveries are short-lived, and a forged one cannot be taken back.
 */
export function isDeliveryAuthentic(keyring: Keyring, columns: MacColumns, content: DeliveryContent): boolean {
  return keyring.get(columns.mac_keyring_id) !== undefined && isAuthentic(keyring, columns, partsOf(content));
}

function partsOf({ id, endpointId, sequence, action, canonical }: DeliveryContent): MacParts {
  return ['webhook_delivery', id, endpointId, sequence, action, canonical];
}
