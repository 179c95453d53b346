import type { OrganizationDoer, Work } from '../db/work.ts';
import { record } from '../history/record.ts';
import { requireLivePartner } from './commands.ts';
import { lockPartner, markPartnerSuspended, type Partner } from './store.ts';

/** From the moment of the commit all its keys are refused everywhere. @throws Problem `not_found`, `already_deleted` */
export function suspendPartner(work: Work<OrganizationDoer>, partnerId: string): Promise<Partner> {
  return changeSuspension(work, partnerId, 'partner.suspended');
}

/** Takes a suspension back; keys that are suspended themselves stay so. @throws Problem `not_found`, `already_deleted` */
export function resumePartner(work: Work<OrganizationDoer>, partnerId: string): Promise<Partner> {
  return changeSuspension(work, partnerId, 'partner.resumed');
}

async function changeSuspension(
  work: Work<OrganizationDoer>,
  partnerId: string,
  action: 'partner.suspended' | 'partner.resumed',
): Promise<Partner> {
  const partner = await lockPartner(work.tx, work.by.organizationId, partnerId);
  requireLivePartner(partner);
  const suspends = action === 'partner.suspended';
  if (suspends === (partner.suspended_at !== null)) return partner;
  const suspendedAt = suspends ? work.now : null;
  await markPartnerSuspended(work.tx, partner.id, suspendedAt);
  const details = suspends ? { suspendedAt: work.now.toISOString() } : {};
  record(work, { action, partnerId: partner.id, details });
  return { ...partner, suspended_at: suspendedAt };
}
