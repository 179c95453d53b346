/** What a caller asks for: one of two words, neither of which includes the other. */
export type Access = 'read' | 'write';

export const accesses = ['read', 'write'] as const satisfies readonly Access[];

/** What a key carries. Only the organization's own default row has `read_write`. */
export type Permission = Access | 'read_write';

export const permissions = [...accesses, 'read_write'] as const satisfies readonly Permission[];

export function permits(permission: Permission, wanted: Access): boolean {
  return permission === 'read_write' || permission === wanted;
}

/** `read` before `write`, each once: the one way in which a set of both is written. */
export function sortAccesses(given: readonly Access[]): Access[] {
  return accesses.filter((access) => given.includes(access));
}
