import type { Keyring } from '../crypto/keyring.ts';
import { type SealBinding, SealBroken, seal, unseal } from '../crypto/seal.ts';
import type { Secret } from '../crypto/secret.ts';
import type { OrganizationId, PartnerId, WebhookId } from '../domain/ids.ts';
import { generateWebhookSecret } from './signature.ts';

/** A new signing secret and the columns that store it. */
export interface MintedSecret {
  secret: Secret;
  columns: { sealed: Buffer; sealed_keyring_id: string };
}

export function mintSecret(keyring: Keyring, endpoint: SealedFor): MintedSecret {
  const secret = generateWebhookSecret();
  const { sealed, keyringId } = seal(keyring, secret, sealBinding(endpoint));
  return { secret, columns: { sealed, sealed_keyring_id: keyringId } };
}

/** The columns that decide a signed body's target and content. */
export interface SealedFor {
  id: WebhookId;
  organization_id: OrganizationId;
  partner_id: PartnerId | null;
  url: string;
}

/** Binds a secret to endpoint, URL and partner: after a manual edit of the URL in the database nothing is sent. */
function sealBinding({ id, organization_id: organizationId, partner_id, url }: SealedFor): SealBinding {
  return { purpose: 'webhook', organizationId, recordId: id, facts: [url, partner_id] };
}

/** The sealed secrets of an endpoint's row. */
export interface SealedSecrets extends SealedFor {
  sealed: Buffer | null;
  sealed_keyring_id: string | null;
  previous_sealed: Buffer | null;
  previous_sealed_keyring_id: string | null;
  previous_until: Date | null;
}

/**
 * The secrets that sign now, the current one first. Leaves out a previous one that does not open.
 * @throws SealBroken if the current one does not open
 */
export function openSecrets(keyring: Keyring, endpoint: SealedSecrets, now: Date): Secret[] {
  const binding = sealBinding(endpoint);
  const open = (sealed: Buffer | null, keyringId: string | null) =>
    sealed === null || keyringId === null ? [] : [unseal(keyring, { sealed, keyringId }, binding)];
  const secrets = open(endpoint.sealed, endpoint.sealed_keyring_id);
  if (endpoint.previous_until === null || endpoint.previous_until <= now) return secrets;
  try {
    return [...secrets, ...open(endpoint.previous_sealed, endpoint.previous_sealed_keyring_id)];
  } catch (error) {
    if (error instanceof SealBroken) return secrets;
    throw error;
  }
}

export type SecretColumns = Pick<
  SealedSecrets,
  'sealed' | 'sealed_keyring_id' | 'previous_sealed' | 'previous_sealed_keyring_id'
>;

/**
 * Seals the same secrets again under the primary keyring entry.
 * @param next the columns to bind the new seals to
 * @throws SealBroken
 */
export function reseal(keyring: Keyring, endpoint: SealedSecrets, next: SealedFor = endpoint): SecretColumns {
  const again = (sealed: Buffer | null, keyringId: string | null) => {
    if (sealed === null || keyringId === null) return null;
    return seal(keyring, unseal(keyring, { sealed, keyringId }, sealBinding(endpoint)), sealBinding(next));
  };
  const present = again(endpoint.sealed, endpoint.sealed_keyring_id);
  const previous = again(endpoint.previous_sealed, endpoint.previous_sealed_keyring_id);
  return {
    sealed: present?.sealed ?? null,
    sealed_keyring_id: present?.keyringId ?? null,
    previous_sealed: previous?.sealed ?? null,
    previous_sealed_keyring_id: previous?.keyringId ?? null,
  };
}
