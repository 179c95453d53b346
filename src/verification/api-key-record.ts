import type { KeyId, OrganizationId, PartnerId } from '../core/ids.ts';
import { KeptRecord } from '../core/kept-records.ts';
import type { Permission } from '../core/permissions.ts';
import type { Bucket } from '../core/use-bucket.ts';

/** A key as it is read: joined with what decides about it beside itself. */
export interface ApiKeyRow {
  id: KeyId;
  organization_id: OrganizationId;
  partner_id: PartnerId | null;
  partner_email: string | null;
  partner_suspended_at: Date | null;
  permission: Permission;
  name: string | null;
  metadata: Record<string, unknown>;
  tag: Buffer;
  tag_keyring_id: string;
  argon2id_hash: string | null;
  created_at: Date;
  expires_at: Date | null;
  allowed_ips: string[];
  suspended_at: Date | null;
  deleted_at: Date | null;
  /** Under whose id a limit of the key's own is counted; null: its own. */
  limit_bucket_id: KeyId | null;
  /** The key's own limit, which counts besides its owner's. */
  rate_limit_requests: number | null;
  rate_limit_window_seconds: number | null;
  /** The partner's limit, else the organization's. */
  owner_limit_requests: number;
  owner_limit_window_seconds: number;
}

/** One for all keys that may be used from anywhere. */
const anywhere: readonly string[] = [];

/**
 * A key as it is kept: what decides about it, and what each of its uses needs. With many keys little of this is in the
 * processor's cache, so whatever would have to be looked up elsewhere lies here, and what is seldom needed does not.
 */
export class ApiKeyRecord extends KeptRecord {
  readonly id: KeyId;
  readonly organization_id: OrganizationId;
  readonly partner_id: PartnerId | null;
  readonly deleted_at: Date | null;
  readonly suspended_at: Date | null;
  readonly partner_suspended_at: Date | null;
  readonly expires_at: Date | null;
  readonly allowed_ips: readonly string[];
  readonly permission: Permission;
  /** What the key's uses count against: with all of its owner's, and by a limit of its own. */
  readonly ownerBucket: Bucket;
  readonly ownBucket: Bucket | null;
  /** What a verdict tells about the key; see `factsOf`. */
  readonly facts: string;
  readonly name: string | null;
  /** Its bytes as Latin-1: as a buffer they would take ten times as much memory. */
  tag: string;
  tag_keyring_id: string;
  readonly argon2id_hash: string | null;
  /** Milliseconds since 1970. */
  readonly createdAtMs: number;

  /** @param shared one text for all that are the same: many keys have the same organization */
  constructor(row: ApiKeyRow, shared: (text: string) => string) {
    super();
    this.id = row.id;
    this.organization_id = shared(row.organization_id) as OrganizationId;
    this.partner_id = row.partner_id;
    this.deleted_at = row.deleted_at;
    this.suspended_at = row.suspended_at;
    this.partner_suspended_at = row.partner_suspended_at;
    this.expires_at = row.expires_at;
    this.allowed_ips = row.allowed_ips.length === 0 ? anywhere : row.allowed_ips;
    this.permission = shared(row.permission) as Permission;
    this.ownerBucket = bucket(
      row.partner_id ?? this.organization_id,
      row.owner_limit_requests,
      row.owner_limit_window_seconds,
    );
    this.ownBucket =
      row.rate_limit_requests === null || row.rate_limit_window_seconds === null
        ? null
        : bucket(row.limit_bucket_id ?? row.id, row.rate_limit_requests, row.rate_limit_window_seconds);
    this.facts = factsOf(row);
    this.name = row.name;
    this.tag = row.tag.toString('latin1');
    this.tag_keyring_id = shared(row.tag_keyring_id);
    this.argon2id_hash = row.argon2id_hash;
    this.createdAtMs = row.created_at.getTime();
  }
}

function bucket(id: string, requests: number, windowSeconds: number): Bucket {
  return { id, requests, windowSeconds, window: undefined };
}

/** The members of a verdict that tell about the key, as JSON without the braces; null: there is none. */
export function factsOf(key: ApiKeyRow | null): string {
  const text = JSON.stringify({
    keyId: key?.id ?? null,
    organizationId: key?.organization_id ?? null,
    partnerId: key?.partner_id ?? null,
    partnerEmail: key?.partner_email ?? null,
    permission: key?.permission ?? null,
    name: key?.name ?? null,
    metadata: key?.metadata ?? null,
    expiresAt: key?.expires_at?.toISOString() ?? null,
    dependsOnIp: key === null ? null : key.allowed_ips.length > 0,
  });
  // A text of its own. What is sliced off another one only points there.
  return Buffer.from(text.slice(1, -1)).toString();
}
