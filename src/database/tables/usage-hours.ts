import type { KeyId, OrganizationId, PartnerId } from '../../domain/ids.ts';

/** Verifications of a key within one hour, by result. */
export interface UsageHoursTable {
  organization_id: OrganizationId;
  partner_id: PartnerId | null;
  key_id: KeyId;
  hour: Date;
  allowed: number;
  denied: number;
  rate_limited: number;
  /** The denied verifications whose reason was that the key is deleted. */
  after_deletion: number;
}
