import type { Actor } from '../domain/actor.ts';
import { Problem, validationProblem } from '../domain/errors.ts';
import type { AccessTokenId, OrganizationId } from '../domain/ids.ts';
import type { Role, TokenScope } from '../domain/permissions.ts';

/** Rules for creating and deleting access tokens that need no database. */

export interface RequestedToken {
  role: Role;
  scopes: TokenScope[];
  email: string | null;
  expiresAt: Date | null;
}

interface Creator {
  role: Actor['type'];
  scopes: readonly TokenScope[];
}

/**
 * Checks a new token. Organizations have admins and verifiers; the installation has operators and installation-wide
 * verifiers. A creator can only give its own scopes.
 * @throws Problem `validation_failed`, `forbidden`
 */
export function requirePermitted(
  creator: Creator,
  requested: RequestedToken,
  organizationId: OrganizationId | null,
  now: Date,
): void {
  const wider = requested.scopes.filter((scope) => !creator.scopes.includes(scope));
  if (wider.length > 0) {
    throw new Problem(
      'forbidden',
      `Your access token lacks the scope ${wider.join(' and ')}, so it cannot create a token with that scope.`,
    );
  }
  if (organizationId === null && requested.role === 'admin') {
    throw validationProblem(
      'body.role',
      'an admin needs an organization: select it with the header Latchkey-Organization',
    );
  }
  if (organizationId !== null && requested.role === 'operator') {
    throw validationProblem(
      'body.role',
      'an operator cannot belong to an organization: omit the header Latchkey-Organization',
    );
  }
  if (requested.role === 'admin' && requested.email === null) {
    throw validationProblem('body.email', 'an admin needs an e-mail address');
  }
  if (requested.role === 'verifier' && !requested.scopes.includes('read')) {
    throw validationProblem('body.scopes', 'a verifier needs the scope read');
  }
  if (requested.expiresAt !== null && requested.expiresAt <= now) {
    throw validationProblem('body.expiresAt', `must be later than now (${now.toISOString()})`);
  }
}

/**
 * Checks that an organization keeps an admin with the scope write. Only an operator can delete the last one's token.
 * @param writers the live access tokens of its admins with the scope write
 * @throws Problem `forbidden`
 */
export function requireAnotherAdmin(
  callerRole: Actor['type'],
  token: { id: AccessTokenId },
  writers: ReadonlyArray<{ id: AccessTokenId }>,
): void {
  const isLast = writers.length === 1 && writers[0]?.id === token.id;
  if (callerRole === 'operator' || !isLast) return;
  throw new Problem(
    'forbidden',
    'This is the last access token of an admin with the scope write in this organization. Create another one first, or ask ' +
      'an operator to delete it.',
  );
}
