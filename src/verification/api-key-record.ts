import type { KeyOrigin } from '../database/tables/api-keys.ts';
import type { KeyId, OrganizationId, PartnerId } from '../domain/ids.ts';
import type { Permission } from '../domain/permissions.ts';
import type { Bucket } from './limits.ts';
import { keyFactsJson } from './verdict-view.ts';

/** An API key as the database query returns it, joined with its partner and organization. */
export interface ApiKeyRow {
  id: KeyId;
  organization_id: OrganizationId;
  partner_id: PartnerId | null;
  partner_external_id: string | null;
  partner_email: string | null;
  partner_suspended_at: Date | null;
  permission: Permission;
  origin: KeyOrigin;
  name: string | null;
  metadata: Record<string, unknown>;
  tag: Buffer;
  tag_keyring_id: string;
  argon2id_hash: string | null;
  created_at: Date;
  expires_at: Date | null;
  allowed_ips: string[];
  scopes: string[];
  suspended_at: Date | null;
  deleted_at: Date | null;
  /** The key id under which the key's own limit is counted; null: this key's id. */
  limit_bucket_id: KeyId | null;
  /** The key's own limit, which counts in addition to its owner's. */
  rate_limit_requests: number | null;
  rate_limit_window_seconds: number | null;
  /** The partner's limit, else the organization's. */
  owner_limit_requests: number;
  owner_limit_window_seconds: number;
}

/** Shared by all keys without an address restriction or without scopes, to save memory. */
const none: readonly string[] = [];

/**
 * A key as the key cache stores it: everything that a verification needs, without a second lookup. Fields that are seldom
 * needed are left out to save memory.
 */
export class ApiKeyRecord {
  readonly id: KeyId;
  readonly organization_id: OrganizationId;
  readonly partner_id: PartnerId | null;
  readonly partner_external_id: string | null;
  readonly deleted_at: Date | null;
  readonly suspended_at: Date | null;
  readonly partner_suspended_at: Date | null;
  readonly expires_at: Date | null;
  readonly allowed_ips: readonly string[];
  readonly scopes: readonly string[];
  readonly permission: Permission;
  readonly isImported: boolean;
  /** The limits that count the key's uses: the one shared by all keys of the owner, and the key's own. */
  readonly ownerBucket: Bucket;
  readonly ownBucket: Bucket | null;
  /** The part of a verdict's JSON that describes the key; see `keyFactsJson`. */
  readonly facts: string;
  readonly name: string | null;
  /** The bytes as a Latin-1 string, which takes far less memory than a buffer. */
  tag: string;
  tag_keyring_id: string;
  readonly argon2id_hash: string | null;
  /** Milliseconds since 1970. */
  readonly createdAtMs: number;
  readonly readAtMs: number;
  tokenHash: string | undefined = undefined;

  constructor(row: ApiKeyRow, readAtMs: number) {
    this.id = row.id;
    this.organization_id = row.organization_id;
    this.partner_id = row.partner_id;
    this.partner_external_id = row.partner_external_id;
    this.deleted_at = row.deleted_at;
    this.suspended_at = row.suspended_at;
    this.partner_suspended_at = row.partner_suspended_at;
    this.expires_at = row.expires_at;
    this.allowed_ips = row.allowed_ips.length === 0 ? none : row.allowed_ips;
    this.scopes = row.scopes.length === 0 ? none : row.scopes;
    this.permission = row.permission;
    this.isImported = row.origin === 'imported';
    this.ownerBucket = bucket(
      row.partner_id ?? this.organization_id,
      row.owner_limit_requests,
      row.owner_limit_window_seconds,
    );
    this.ownBucket =
      row.rate_limit_requests === null || row.rate_limit_window_seconds === null
        ? null
        : bucket(row.limit_bucket_id ?? row.id, row.rate_limit_requests, row.rate_limit_window_seconds);
    this.facts = keyFactsJson({
      keyId: row.id,
      organizationId: row.organization_id,
      partnerId: row.partner_id,
      partnerExternalId: row.partner_external_id,
      partnerEmail: row.partner_email,
      permission: row.permission,
      scopes: row.scopes,
      name: row.name,
      metadata: row.metadata,
      expiresAt: row.expires_at?.toISOString() ?? null,
      dependsOnIp: row.allowed_ips.length > 0,
    });
    this.name = row.name;
    this.tag = row.tag.toString('latin1');
    this.tag_keyring_id = row.tag_keyring_id;
    this.argon2id_hash = row.argon2id_hash;
    this.createdAtMs = row.created_at.getTime();
    this.readAtMs = readAtMs;
  }
}

function bucket(id: string, requests: number, windowSeconds: number): Bucket {
  return { id, requests, windowSeconds, window: undefined };
}
