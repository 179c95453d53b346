import type { Keyring } from '../crypto/keyring.ts';
import { unseal } from '../crypto/seal.ts';
import type { Secret } from '../crypto/secret.ts';
import { type OrganizationContext, type Transactor, transact } from '../database/work.ts';
import { type RevealRequest, recordReveal } from './commands.ts';
import { sealBinding } from './mint.ts';

interface RevealDeps {
  transactor: Transactor;
  keyring: Keyring;
}

/**
 * Records the reveal, and unseals the value after the commit.
 * @throws Problem `not_found`, `already_deleted`, `reveal_disabled`; SealBroken
 */
export async function revealKey(
  { transactor, keyring }: RevealDeps,
  by: OrganizationContext,
  keyId: string,
  given: RevealRequest,
): Promise<Secret> {
  const { key, sealed } = await transact(transactor, by, (work) => recordReveal(work, keyId, given));
  return unseal(
    keyring,
    { keyringId: sealed.sealed_keyring_id, sealed: sealed.sealed },
    sealBinding(by.organizationId, key.id),
  );
}
