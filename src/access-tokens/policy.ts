import { Problem, validationProblem } from '../domain/errors.ts';
import type { AccessTokenId, OrganizationId } from '../domain/ids.ts';
import type { Access } from '../domain/permissions.ts';

/** Who may make which access tokens, without a database. */

export type TokenRole = 'operator' | 'admin' | 'verifier';

export interface WishedToken {
  role: TokenRole;
  scopes: Access[];
  email: string | null;
  expiresAt: Date | null;
}

interface Maker {
  role: TokenRole | 'system';
  scopes: readonly Access[];
}

/**
 * An organization's tokens are admins and verifiers; the installation's are operators, and verifiers for all
 * organizations. Nobody gives a scope that it does not have.
 * @throws Problem `validation_failed`, `forbidden`
 */
export function requirePermitted(
  maker: Maker,
  wished: WishedToken,
  organizationId: OrganizationId | null,
  now: Date,
): void {
  const wider = wished.scopes.filter((scope) => !maker.scopes.includes(scope));
  if (wider.length > 0) {
    throw new Problem('forbidden', `A token cannot give the scope ${wider.join(' and ')} that it does not have.`);
  }
  if (organizationId === null && wished.role === 'admin') {
    throw validationProblem('body.role', 'an admin belongs to an organization: name it in Latchkey-Organization');
  }
  if (organizationId !== null && wished.role === 'operator') {
    throw validationProblem('body.role', 'an operator belongs to no organization: only an operator makes one');
  }
  if (wished.role === 'admin' && wished.email === null) {
    throw validationProblem('body.email', 'an admin is a named person: give the e-mail address');
  }
  if (wished.role === 'verifier' && !wished.scopes.includes('read')) {
    throw validationProblem('body.scopes', 'a verifier needs the scope read: it asks, and changes nothing');
  }
  if (wished.expiresAt !== null && wished.expiresAt <= now) {
    throw validationProblem('body.expiresAt', `must be later than now, which is ${now.toISOString()}`);
  }
}

/**
 * An organization keeps an admin who can change something: only an operator takes away the last one's token.
 * @param writers the live access tokens of its admins with the scope write
 * @throws Problem `forbidden`
 */
export function requireAnotherAdmin(
  remover: TokenRole | string,
  token: { id: AccessTokenId },
  writers: ReadonlyArray<{ id: AccessTokenId }>,
): void {
  const isLast = writers.length === 1 && writers[0]?.id === token.id;
  if (remover === 'operator' || !isLast) return;
  throw new Problem(
    'forbidden',
    'This is the last access token of an admin with the scope write in this organization. Create another one first, or have ' +
      'an operator delete it.',
  );
}
