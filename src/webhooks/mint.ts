import type { Keyring } from '../crypto/keyring.ts';
import { type SealBinding, seal, unseal } from '../crypto/seal.ts';
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

/** The secrets that sign now, the current one first. @throws SealBroken */
export function openSecrets(keyring: Keyring, endpoint: SealedSecrets, now: Date): Secret[] {
  const binding = sealBinding(endpoint);
  const isPreviousValid = endpoint.previous_until !== null && endpoint.previous_until > now;
  return [
    { sealed: endpoint.sealed, keyringId: endpoint.sealed_keyring_id },
    ...(isPreviousValid ? [{ sealed: endpoint.previous_sealed, keyringId: endpoint.previous_sealed_keyring_id }] : []),
  ].flatMap(({ sealed, keyringId }) =>
    sealed === null || keyringId === null ? [] : [unseal(keyring, { sealed, keyringId }, binding)],
  );
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
