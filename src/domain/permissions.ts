/** The access that a caller asks for. Neither includes the other. */
export type Access = 'read' | 'write';

export const accesses = ['read', 'write'] as const satisfies readonly Access[];

/** The permission of a key. Only keys of the organization's default row have `read_write`. */
export type Permission = Access | 'read_write';

export const permissions = [...accesses, 'read_write'] as const satisfies readonly Permission[];

export function permits(permission: Permission, wanted: Access): boolean {
  return permission === 'read_write' || permission === wanted;
}

/** The access that a request asks for by its method: GET, HEAD and OPTIONS read; all other methods write. */
export function permissionFor(method: string): Access {
  return method === 'GET' || method === 'HEAD' || method === 'OPTIONS' ? 'read' : 'write';
}

/** The normal form of a set of both: `read` before `write`, each once. */
export function sortAccesses(given: readonly Access[]): Access[] {
  return accesses.filter((access) => given.includes(access));
}

/** What an access token permits. None includes another; `reveal` is for the plaintexts of existing keys. */
export type TokenScope = Access | 'reveal';

export const tokenScopes = [...accesses, 'reveal'] as const satisfies readonly TokenScope[];

/** The normal form of the scopes of a token: in the order of `tokenScopes`, each once. */
export function sortTokenScopes(given: readonly TokenScope[]): TokenScope[] {
  return tokenScopes.filter((scope) => given.includes(scope));
}

/** The role of an access token. */
export type Role = 'operator' | 'admin' | 'verifier';

export const roles = ['operator', 'admin', 'verifier'] as const satisfies readonly Role[];
