import { Problem } from '../core/errors.ts';
import type { KeyId } from '../core/ids.ts';
import type { Keyring } from '../crypto/keyring.ts';
import { SealBroken, unseal } from '../crypto/seal.ts';
import type { Secret } from '../crypto/secret.ts';
import type { OrganizationDoer, Transactor } from '../db/work.ts';
import type { Reopener } from '../http/idempotency.ts';
import { type RevealRequest, recordReveal } from './commands.ts';
import { sealBinding } from './mint.ts';
import { findOpenable } from './store.ts';

interface RevealDeps {
  transactor: Transactor;
  keyring: Keyring;
}

/**
 * Records the look, and opens the sealed value once the record is committed.
 * @throws Problem `not_found`, `already_deleted`, `reveal_disabled`; SealBroken
 */
export async function revealKey(
  { transactor, keyring }: RevealDeps,
  by: OrganizationDoer,
  keyId: string,
  given: RevealRequest,
): Promise<Secret> {
  const { key, sealed } = await recordReveal(transactor, by, keyId, given);
  return unseal(
    keyring,
    { keyringId: sealed.sealed_keyring_id, sealed: sealed.sealed },
    sealBinding(by.organizationId, key.id),
  );
}

/** For a reply that is given a second time: the same look by the same rules, but a key that has gone is no error. */
export function createReopener(deps: RevealDeps): Reopener {
  return {
    findOpenable: (organizationId, ids) => findOpenable(deps.transactor.db, organizationId, ids),
    open: (by, id: KeyId) => revealKey(deps, by, id, { reason: 'replay' }).catch(undefinedIfNotOpen),
  };
}

/** What was done was done, whether or not its plaintext still opens: the caller must be able to learn of it. */
function undefinedIfNotOpen(error: unknown): undefined {
  if (error instanceof SealBroken || (error instanceof Problem && error.status < 500)) return undefined;
  throw error;
}
