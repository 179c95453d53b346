import { writeTransaction } from '../database/client.ts';
import type { KeyReveal, LeakResponse } from '../database/tables/organizations.ts';
import { type OrganizationContext, type Transactor, transact, type Work } from '../database/work.ts';
import { type ExpectedTags, entityTagOf, requireExpected } from '../domain/entity-tag.ts';
import type { OrganizationId } from '../domain/ids.ts';
import type { RateLimit } from '../domain/rate-limit.ts';
import { changesBetween } from '../history/changes.ts';
import { record } from '../history/record.ts';
import { erasePlaintextReplies } from '../http/idempotency-store.ts';
import { inBatches } from '../lib/batches.ts';
import { withoutUndefined } from '../lib/without-undefined.ts';
import { requireFittingLifetimes } from './policy.ts';
import {
  insertOrganization,
  lockOrganization,
  type Organization,
  updateOrganization,
  wipeUnwantedSeals,
} from './store.ts';

/** The initial limit of an organization. It applies to partners and keys without a limit of their own. */
const initialRateLimit: RateLimit = { requests: 1_000, windowSeconds: 60 };

export interface NewOrganization {
  name: string;
  keyReveal?: KeyReveal | undefined;
}

/** Creates the organization of `work`; its history begins with its creation. */
export async function addOrganization(work: Work<OrganizationContext>, given: NewOrganization): Promise<Organization> {
  const organization: Organization = {
    id: work.by.organizationId,
    name: given.name,
    ...toColumns({ ...defaultSettings, keyReveal: given.keyReveal ?? defaultSettings.keyReveal }),
    rate_limit_requests: initialRateLimit.requests,
    rate_limit_window_seconds: initialRateLimit.windowSeconds,
    created_at: work.now,
    created_by: work.by.actor,
  };
  await insertOrganization(work.tx, organization);
  record(work, {
    action: 'organization.created',
    details: { name: organization.name, ...settingsOf(organization), rateLimit: rateLimitOf(organization) },
  });
  return organization;
}

/** The rules of an organization for its keys, as the API names them. */
interface OrganizationSettings {
  keyReveal: KeyReveal;
  leakResponse: LeakResponse;
  selfService: boolean;
  maxKeyLifetimeSeconds: number | null;
  defaultKeyLifetimeSeconds: number | null;
  idleSuspendAfterDays: number | null;
}

const defaultSettings: OrganizationSettings = {
  keyReveal: 'allowed',
  leakResponse: 'notify',
  selfService: false,
  maxKeyLifetimeSeconds: null,
  defaultKeyLifetimeSeconds: null,
  idleSuspendAfterDays: null,
};

export type OrganizationPatch = { name?: string | undefined } & {
  [Setting in keyof OrganizationSettings]?: OrganizationSettings[Setting] | undefined;
};

/**
 * Changes an organization. `keyReveal: "never"` ends all reveals with the commit and deletes all sealed plaintexts. If
 * deleting fails midway, a job does the rest. New rules for the lifetime of keys do not change existing keys.
 * @throws Problem `not_found`, `precondition_failed`, `validation_failed` (a default above the maximum)
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
    const changes = changesBetween({ name: present.name, ...settingsOf(present) }, given);
    if (Object.keys(changes).length === 0) return present;
    const { name, ...settings } = { ...present, ...settingsOf(present), ...withoutUndefined(given) };
    requireFittingLifetimes(settings);
    const next = { name, ...toColumns(settings) };
    await updateOrganization(work.tx, present.id, next);
    if (next.key_reveal === 'never') await erasePlaintextReplies(work.tx, present.id);
    record(work, { action: 'organization.updated', details: { changes } });
    return { ...present, ...next };
  });
  if (organization.key_reveal === 'never') await wipeSeals(transactor, organization.id);
  return organization;
}

/** Keys per transaction. Each changed key sends a notification, which takes time. */
const wipeBatchSize = 2_000;

/**
 * Deletes the sealed plaintexts of organizations with `keyReveal: "never"`.
 * @param organizationId null for all organizations
 * @returns how many
 */
export async function wipeSeals(
  { db }: Pick<Transactor, 'db'>,
  organizationId: OrganizationId | null,
): Promise<number> {
  return inBatches(wipeBatchSize, (count) =>
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

/** An organization's settings as the API and history name them. */
export function settingsOf(organization: Organization): OrganizationSettings {
  return {
    keyReveal: organization.key_reveal,
    leakResponse: organization.leak_response,
    selfService: organization.self_service,
    maxKeyLifetimeSeconds: organization.max_key_lifetime_seconds,
    defaultKeyLifetimeSeconds: organization.default_key_lifetime_seconds,
    idleSuspendAfterDays: organization.idle_suspend_after_days,
  };
}

function toColumns(settings: OrganizationSettings) {
  return {
    key_reveal: settings.keyReveal,
    leak_response: settings.leakResponse,
    self_service: settings.selfService,
    max_key_lifetime_seconds: settings.maxKeyLifetimeSeconds,
    default_key_lifetime_seconds: settings.defaultKeyLifetimeSeconds,
    idle_suspend_after_days: settings.idleSuspendAfterDays,
  };
}

export function rateLimitOf(organization: Organization): RateLimit {
  return { requests: organization.rate_limit_requests, windowSeconds: organization.rate_limit_window_seconds };
}
