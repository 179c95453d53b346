import { Secret } from '../crypto/secret.ts';
import { parseToken } from '../crypto/token.ts';
import { currentTime } from '../database/credential.ts';
import { type ActorContext, type Transactor, transact } from '../database/work.ts';
import type { ClaimId } from '../domain/ids.ts';
import { isOpen, type Redemption, recordRedemption } from './commands.ts';
import { hashOfCode, openClaim } from './mint.ts';
import { claimGone } from './policy.ts';
import { findSecretClaim } from './store.ts';

export interface Redeemed extends Redemption {
  plaintext: Secret;
}

/**
 * Redeems a code: checks it, records `key.claimed`, and opens the sealed value after the commit. Wrong codes lock nothing.
 * @throws Problem `claim_gone`; SealBroken
 */
export async function redeemClaim(
  transactor: Transactor,
  { code, tokenPrefix, facts, trace }: { code: string; tokenPrefix: string } & RedeemFacts,
): Promise<Redeemed> {
  const parsed = parseToken(code, tokenPrefix);
  if (parsed?.kind !== 'c') throw claimGone();
  const id = `claim_${parsed.idSuffix}` as ClaimId;
  const codeHash = hashOfCode(new Secret(code));
  const now = await currentTime(transactor.db, transactor.clock);
  const found = await findSecretClaim(transactor.db, id);
  if (!isOpen(transactor, found, codeHash, now)) throw claimGone();
  const by = {
    // Nobody is authenticated: the code is all that is known of its holder.
    actor: { type: 'claim', id, name: id, email: null },
    organizationId: found.organization_id,
    request: facts,
    trace,
  } as const;
  const redemption = await transact(transactor, by, (work) => recordRedemption(work, found, facts.ip));
  return { ...redemption, plaintext: openClaim(transactor.keyring, redemption.claim) };
}

interface RedeemFacts extends Pick<ActorContext, 'trace'> {
  facts: NonNullable<ActorContext['request']>;
}
