import { Problem } from '../domain/errors.ts';

/** Rules of partners that need no database. */

interface DeletablePartner {
  id: string;
  deleted_at: Date | null;
}

/** @throws Problem `already_deleted` */
export function requireLivePartner(partner: DeletablePartner): void {
  if (partner.deleted_at === null) return;
  throw new Problem('already_deleted', `Partner ${partner.id} was deleted at ${partner.deleted_at.toISOString()}.`);
}

/**
 * @returns when the partner was deleted
 * @throws Problem `conflict` if it is live
 */
export function requireDeletedPartner(partner: DeletablePartner): Date {
  if (partner.deleted_at === null) throw new Problem('conflict', `Partner ${partner.id} is not deleted.`);
  return partner.deleted_at;
}
