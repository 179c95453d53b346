import { writeTransaction } from '../database/client.ts';
import type { KeyReveal } from '../database/tables/organizations.ts';
import { type OrganizationContext, type Transactor, transact, type Work } from '../database/work.ts';
import { type ExpectedTags, entityTagOf, requireExpected } from '../domain/entity-tag.ts';
import type { OrganizationId } from '../domain/ids.ts';
import type { RateLimit } from '../domain/rate-limit.ts';
import { changesBetween } from '../history/changes.ts';
import { record } from '../history/record.ts';
import { erasePlaintextReplies } from '../http/idempotency-store.ts';
import { inBatches } from '../lib/batches.ts';
import {
  insertOrganization,
  lockOrganization,
  type Organization,
  updateOrganization,
  wipeUnwantedSeals,
} from './store.ts';

/** What an organization starts with; it applies where a partner or key has no limit of its own. */
const firstRateLimit: RateLimit = { requests: 1_000, windowSeconds: 60 };

export interface NewOrganization {
  name: string;
  keyReveal?: KeyReveal | undefined;
}

/** The organization in which the work is done: its history begins with its own creation. */
export async function addOrganization(work: Work<OrganizationContext>, given: NewOrganization): Promise<Organization> {
  const organization: Organization = {
    id: work.by.organizationId,
    name: given.name,
    key_reveal: given.keyReveal ?? 'allowed',
    rate_limit_requests: firstRateLimit.requests,
    rate_limit_window_seconds: firstRateLimit.windowSeconds,
    created_at: work.now,
    created_by: work.by.actor,
  };
  await insertOrganization(work.tx, organization);
  record(work, {
    action: 'organization.created',
    details: { name: organization.name, keyReveal: organization.key_reveal, rateLimit: rateLimitOf(organization) },
  });
  return organization;
}

export interface OrganizationPatch {
  name?: string | undefined;
  keyReveal?: KeyReveal | undefined;
}

/**
 * `keyReveal: "never"` ends all reveals with the commit, and before this returns also wipes what was sealed, for good. What
 * a failure leaves of it a job wipes.
 * @throws Problem `not_found`, `precondition_failed`
 */
export async function patchOrganization(
  transactor: Transactor,
  by: OrganizationContext,
  given: OrganizationPatch,
  expected: ExpectedTags,
): Promise<Organization> {
  const organization = await transact(transactor, by, async (work) => {
    const present = await lockOrganization(work.tx, work.by.organizationId);
    requireExpected(expected, entityTagOf(present));
    const changes = changesBetween({ name: present.name, keyReveal: present.key_reveal }, given);
    if (Object.keys(changes).length === 0) return present;
    const next = { name: given.name ?? present.name, key_reveal: given.keyReveal ?? present.key_reveal };
    await updateOrganization(work.tx, present.id, next);
    if (next.key_reveal === 'never') await erasePlaintextReplies(work.tx, present.id);
    record(work, { action: 'organization.updated', details: { changes } });
    return { ...present, ...next };
  });
  if (organization.key_reveal === 'never') await wipeSeals(transactor, organization.id);
  return organization;
}

/** Keys in one transaction: the notices of their change take a moment each. */
const wipedAtOnce = 2_000;

/** @param organizationId null: of whatever organization wants none @returns how many */
export async function wipeSeals(
  { db }: Pick<Transactor, 'db'>,
  organizationId: OrganizationId | null,
): Promise<number> {
  return inBatches(wipedAtOnce, (count) =>
    writeTransaction(db).execute((tx) => wipeUnwantedSeals(tx, organizationId, count)),
  );
}

export async function putRateLimit(work: Work<OrganizationContext>, given: RateLimit): Promise<RateLimit> {
  const organization = await lockOrganization(work.tx, work.by.organizationId);
  const present = rateLimitOf(organization);
  const changes = changesBetween({ ...present }, { ...given });
  if (Object.keys(changes).length === 0) return present;
  await updateOrganization(work.tx, organization.id, {
    rate_limit_requests: given.requests,
    rate_limit_window_seconds: given.windowSeconds,
  });
  record(work, { action: 'rate_limit.updated', details: { changes } });
  return given;
}

export function rateLimitOf(organization: Organization): RateLimit {
  return { requests: organization.rate_limit_requests, windowSeconds: organization.rate_limit_window_seconds };
}
