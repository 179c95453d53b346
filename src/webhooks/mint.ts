import type { OrganizationId, WebhookId } from '../core/ids.ts';
import type { Keyring } from '../crypto/keyring.ts';
import { seal, unseal } from '../crypto/seal.ts';
import type { Secret } from '../crypto/secret.ts';
import { generateWebhookSecret } from './signature.ts';

/** A signing secret that exists nowhere yet but here. */
export interface MintedSecret {
  secret: Secret;
  columns: { sealed: Buffer; sealed_keyring_id: string };
}

export function mintSecret(keyring: Keyring, organizationId: OrganizationId, id: WebhookId): MintedSecret {
  const secret = generateWebhookSecret();
  const { sealed, keyringId } = seal(keyring, secret, sealBinding(organizationId, id));
  return { secret, columns: { sealed, sealed_keyring_id: keyringId } };
}

/** What a sealed secret is bound to: moved to another organization or endpoint, it does not open. */
export function sealBinding(organizationId: OrganizationId, id: WebhookId) {
  return { purpose: 'webhook', organizationId, recordId: id } as const;
}

/** The secrets of an endpoint as its row keeps them. */
export interface SealedSecrets {
  id: WebhookId;
  organization_id: OrganizationId;
  sealed: Buffer | null;
  sealed_keyring_id: string | null;
  previous_sealed: Buffer | null;
  previous_sealed_keyring_id: string | null;
  previous_until: Date | null;
}

/** Those that sign at this time, the present one first. @throws SealBroken */
export function openSecrets(keyring: Keyring, endpoint: SealedSecrets, now: Date): Secret[] {
  const binding = sealBinding(endpoint.organization_id, endpoint.id);
  const isSigningAlong = endpoint.previous_until !== null && endpoint.previous_until > now;
  return [
    { sealed: endpoint.sealed, keyringId: endpoint.sealed_keyring_id },
    ...(isSigningAlong ? [{ sealed: endpoint.previous_sealed, keyringId: endpoint.previous_sealed_keyring_id }] : []),
  ].flatMap(({ sealed, keyringId }) =>
    sealed === null || keyringId === null ? [] : [unseal(keyring, { sealed, keyringId }, binding)],
  );
}
