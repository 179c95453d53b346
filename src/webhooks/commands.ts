import { SealBroken } from '../crypto/seal.ts';
import type { Secret } from '../crypto/secret.ts';
import type { OrganizationContext, Work } from '../database/work.ts';
import { Problem } from '../domain/errors.ts';
import { newId, type PartnerId, type WebhookId } from '../domain/ids.ts';
import { changesBetween } from '../history/changes.ts';
import { record } from '../history/record.ts';
import { lockOrganization } from '../organizations/store.ts';
import { requireLivePartner } from '../partners/policy.ts';
import { lockPartner } from '../partners/store.ts';
import { wakeSender } from './enqueue-deliveries.ts';
import { type MintedSecret, mintSecret, reseal } from './mint.ts';
import {
  endpointsAllowed,
  oldSecretSignsMs,
  redactedUrl,
  requireEnabled,
  requireSubscribable,
  sortEvents,
} from './policy.ts';
import {
  countWebhooks,
  insertWebhook,
  lockForSending,
  lockWebhook,
  markWebhookDeleted,
  markWebhookDisabled,
  markWebhookEnabled,
  replaceSeals,
  replaceSecret,
  updateWebhook,
  type Webhook,
} from './store.ts';

export interface NewWebhook {
  url: string;
  events: readonly string[];
  partnerId: PartnerId | null;
  description: string | null;
}

export interface WebhookWithSecret {
  webhook: Webhook;
  secret: Secret;
}

/**
 * Creates a webhook. The caller checks the URL before the transaction, so that no lock is held during DNS resolution.
 * @throws Problem `validation_failed`, `not_found` (the partner), `already_deleted` (the partner), `conflict` (too
 * many)
 */
export async function createWebhook(work: Work<OrganizationContext>, given: NewWebhook): Promise<WebhookWithSecret> {
  requireSubscribable(given.events, given.partnerId);
  const id = newId('webhook');
  const { url, partnerId: partner_id } = given;
  const minted = mintSecret(work.keyring, { id, organization_id: work.by.organizationId, partner_id, url });
  await lockOrganization(work.tx, work.by.organizationId);
  await requireFreeWebhook(work);
  if (given.partnerId !== null) {
    requireLivePartner(await lockPartner(work.tx, work.by.organizationId, given.partnerId));
  }
  return { webhook: await addWebhook(work, id, given, minted.columns), secret: minted.secret };
}

async function requireFreeWebhook({ tx, by }: Work<OrganizationContext>): Promise<void> {
  if ((await countWebhooks(tx, by.organizationId)) < endpointsAllowed) return;
  throw new Problem('conflict', `An organization can have at most ${endpointsAllowed} webhooks. Delete one first.`);
}

async function addWebhook(
  work: Work<OrganizationContext>,
  id: WebhookId,
  { url, partnerId, description, ...given }: NewWebhook,
  secret: MintedSecret['columns'],
): Promise<Webhook> {
  const events = sortEvents(given.events);
  const row = {
    id,
    organization_id: work.by.organizationId,
    partner_id: partnerId,
    url,
    events,
    description,
    created_at: work.now,
    created_by: work.by.actor,
  };
  const webhook = await insertWebhook(work.tx, row, secret);
  recordOf(work, webhook, 'webhook.created', { url: redactedUrl(url), events, description });
  return webhook;
}

export interface WebhookPatch {
  url?: string | undefined;
  events?: readonly string[] | undefined;
  description?: string | null | undefined;
}

/**
 * Changes a webhook. The caller checks a new URL before the transaction. @throws Problem `not_found`,
 * `validation_failed`
 */
export async function patchWebhook(work: Work<OrganizationContext>, id: string, patch: WebhookPatch): Promise<Webhook> {
  const webhook = await lockWebhook(work.tx, work.by.organizationId, id);
  const { url, events, description, failing_since } = webhook;
  const given = { ...patch, events: patch.events === undefined ? undefined : sortEvents(patch.events) };
  requireSubscribable(given.events ?? [], webhook.partner_id);
  const changes = changesBetween({ url, events, description }, given);
  if (Object.keys(changes).length === 0) return webhook;
  const next = {
    url: given.url ?? url,
    events: given.events ?? events,
    description: given.description === undefined ? description : given.description,
    // The failures concerned the old URL.
    failing_since: changes['url'] === undefined ? failing_since : null,
  };
  await updateWebhook(work.tx, webhook.id, next);
  if (changes['url'] !== undefined) await resealSecrets(work, webhook, next.url);
  const shown = changes['url'] === undefined ? {} : { url: { from: redactedUrl(url), to: redactedUrl(next.url) } };
  recordOf(work, webhook, 'webhook.updated', { changes: { ...changes, ...shown } });
  return { ...webhook, ...next };
}

/** Seals the secrets for a new URL. Secrets that do not open stay unchanged; rotate them to get a working one. */
async function resealSecrets({ tx, keyring }: Work, webhook: Webhook, url: string): Promise<void> {
  const present = await lockForSending(tx, webhook.id);
  if (present === undefined) return;
  try {
    await replaceSeals(tx, webhook.id, reseal(keyring, { ...present, url: webhook.url }, { ...present, url }));
  } catch (error) {
    if (!(error instanceof SealBroken)) throw error;
  }
}

/** Deletes a webhook. Pending deliveries are not sent. @throws Problem `not_found` */
export async function deleteWebhook(work: Work<OrganizationContext>, id: string): Promise<Webhook> {
  const webhook = await lockWebhook(work.tx, work.by.organizationId, id);
  await markWebhookDeleted(work.tx, webhook.id, work.now);
  recordOf(work, webhook, 'webhook.deleted', { url: redactedUrl(webhook.url) });
  wakeSenderBeforeCommit(work);
  return { ...webhook, previous_until: null, deleted_at: work.now };
}

/** Enables a disabled webhook. @throws Problem `not_found` */
export async function enableWebhook(work: Work<OrganizationContext>, id: string): Promise<Webhook> {
  const webhook = await lockWebhook(work.tx, work.by.organizationId, id);
  if (webhook.disabled_at === null) return webhook;
  await markWebhookEnabled(work.tx, webhook.id);
  const details = { disabledAt: webhook.disabled_at.toISOString(), reason: webhook.disabled_reason };
  recordOf(work, webhook, 'webhook.enabled', details);
  return { ...webhook, disabled_at: null, disabled_reason: null, failing_since: null };
}

/** Disables a webhook. Pending deliveries fail; they can be redelivered later. @throws Problem `not_found` */
export async function disableWebhook(work: Work<OrganizationContext>, id: string): Promise<Webhook> {
  const webhook = await lockWebhook(work.tx, work.by.organizationId, id);
  if (webhook.disabled_at !== null) return webhook;
  await markWebhookDisabled(work.tx, webhook.id, work.now, 'requested');
  recordOf(work, webhook, 'webhook.disabled', { reason: 'requested', failingSince: null });
  wakeSenderBeforeCommit(work);
  return { ...webhook, disabled_at: work.now, disabled_reason: 'requested' };
}

/** Creates a new secret; the old one also signs for 24 hours. @throws Problem `not_found` */
export async function rotateSecret(work: Work<OrganizationContext>, id: string): Promise<WebhookWithSecret> {
  const webhook = await lockWebhook(work.tx, work.by.organizationId, id);
  const { secret, columns } = mintSecret(work.keyring, webhook);
  const previousUntil = new Date(work.now.getTime() + oldSecretSignsMs);
  await replaceSecret(work.tx, webhook.id, columns, previousUntil);
  recordOf(work, webhook, 'webhook.secret_rotated', { previousUntil: previousUntil.toISOString() });
  return { webhook: { ...webhook, previous_until: previousUntil }, secret };
}

/**
 * Sends a `webhook.tested` event to this endpoint only, regardless of its events. @throws Problem `not_found`,
 * `conflict`
 */
export async function testWebhook(work: Work<OrganizationContext>, id: string): Promise<Webhook> {
  const webhook = await lockWebhook(work.tx, work.by.organizationId, id);
  requireEnabled(webhook);
  recordOf(work, webhook, 'webhook.tested', {});
  return webhook;
}

/** Records an event of a webhook. The event of a partner's endpoint also appears in the partner's history. */
export function recordOf(
  work: Work,
  { id, partner_id }: Pick<Webhook, 'id' | 'partner_id'>,
  action: `webhook.${'created' | 'updated' | 'deleted' | 'enabled' | 'disabled' | 'secret_rotated' | 'tested' | 'redelivered'}`,
  details: Record<string, unknown>,
): void {
  record(work, { action, partnerId: partner_id, details: { webhookId: id, ...details } });
}

/** Queue rows are locked after the chain's head, like everywhere else, to avoid deadlocks. */
export function wakeSenderBeforeCommit(work: Work<OrganizationContext>): void {
  work.beforeCommit.push(() => wakeSender(work.tx, work.by.organizationId));
}
