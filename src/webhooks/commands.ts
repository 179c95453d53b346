import { SealBroken } from '../crypto/seal.ts';
import type { Secret } from '../crypto/secret.ts';
import type { OrganizationContext, Work } from '../database/work.ts';
import { Problem } from '../domain/errors.ts';
import { newId, type PartnerId, type WebhookId } from '../domain/ids.ts';
import { changesBetween } from '../history/changes.ts';
import { record } from '../history/record.ts';
import { lockOrganization } from '../organizations/store.ts';
import { requireLivePartner } from '../partners/commands.ts';
import { lockPartner } from '../partners/store.ts';
import { wakeSender } from './enqueue-deliveries.ts';
import { type MintedSecret, mintSecret, reseal } from './mint.ts';
import { endpointsAllowed, oldSecretSignsMs, requireEnabled, requireTellable, shownUrl, sortEvents } from './policy.ts';
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
 * The URL was checked before the transaction, so that no lock is held while its name is resolved.
 * @throws Problem `validation_failed`, `not_found` (the partner), `already_deleted` (the partner), `conflict` (too many)
 */
export async function createWebhook(work: Work<OrganizationContext>, given: NewWebhook): Promise<WebhookWithSecret> {
  requireTellable(given.events, given.partnerId);
  const id = newId('webhook');
  const { url, partnerId: partner_id } = given;
  const minted = mintSecret(work.keyring, { id, organization_id: work.by.organizationId, partner_id, url });
  await lockOrganization(work.tx, work.by.organizationId);
  await requirePlace(work);
  if (given.partnerId !== null) {
    requireLivePartner(await lockPartner(work.tx, work.by.organizationId, given.partnerId));
  }
  return { webhook: await addWebhook(work, id, given, minted.columns), secret: minted.secret };
}

async function requirePlace({ tx, by }: Work<OrganizationContext>): Promise<void> {
  if ((await countWebhooks(tx, by.organizationId)) < endpointsAllowed) return;
  throw new Problem('conflict', `An organization has at most ${endpointsAllowed} webhooks: delete one first.`);
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
  recordOf(work, webhook, 'webhook.created', { url: shownUrl(url), events, description });
  return webhook;
}

export interface WebhookPatch {
  url?: string | undefined;
  events?: readonly string[] | undefined;
  description?: string | null | undefined;
}

/** A new URL was checked before the transaction. @throws Problem `not_found`, `validation_failed` */
export async function patchWebhook(work: Work<OrganizationContext>, id: string, patch: WebhookPatch): Promise<Webhook> {
  const webhook = await lockWebhook(work.tx, work.by.organizationId, id);
  const { url, events, description, failing_since } = webhook;
  const given = { ...patch, events: patch.events === undefined ? undefined : sortEvents(patch.events) };
  requireTellable(given.events ?? [], webhook.partner_id);
  const changes = changesBetween({ url, events, description }, given);
  if (Object.keys(changes).length === 0) return webhook;
  const next = {
    url: given.url ?? url,
    events: given.events ?? events,
    description: given.description === undefined ? description : given.description,
    // Whatever failed, it was not this address.
    failing_since: changes['url'] === undefined ? failing_since : null,
  };
  await updateWebhook(work.tx, webhook.id, next);
  if (changes['url'] !== undefined) await bindSecrets(work, webhook, next.url);
  const shown = changes['url'] === undefined ? {} : { url: { from: shownUrl(url), to: shownUrl(next.url) } };
  recordOf(work, webhook, 'webhook.updated', { changes: { ...changes, ...shown } });
  return { ...webhook, ...next };
}

/** Seals the secrets for another URL. Where they do not open they stay so, and a new secret is needed as before. */
async function bindSecrets({ tx, keyring }: Work, webhook: Webhook, url: string): Promise<void> {
  const present = await lockForSending(tx, webhook.id);
  if (present === undefined) return;
  try {
    await replaceSeals(tx, webhook.id, reseal(keyring, { ...present, url: webhook.url }, { ...present, url }));
  } catch (error) {
    if (!(error instanceof SealBroken)) throw error;
  }
}

/** What has not been sent yet is not sent any more. @throws Problem `not_found` */
export async function deleteWebhook(work: Work<OrganizationContext>, id: string): Promise<Webhook> {
  const webhook = await lockWebhook(work.tx, work.by.organizationId, id);
  await markWebhookDeleted(work.tx, webhook.id, work.now);
  recordOf(work, webhook, 'webhook.deleted', { url: shownUrl(webhook.url) });
  wakeAfterwards(work);
  return { ...webhook, previous_until: null, deleted_at: work.now };
}

/** @throws Problem `not_found` */
export async function enableWebhook(work: Work<OrganizationContext>, id: string): Promise<Webhook> {
  const webhook = await lockWebhook(work.tx, work.by.organizationId, id);
  if (webhook.disabled_at === null) return webhook;
  await markWebhookEnabled(work.tx, webhook.id);
  const details = { disabledAt: webhook.disabled_at.toISOString(), reason: webhook.disabled_reason };
  recordOf(work, webhook, 'webhook.enabled', details);
  return { ...webhook, disabled_at: null, disabled_reason: null, failing_since: null };
}

/** What has not been sent yet has failed, and can be asked for again later. @throws Problem `not_found` */
export async function disableWebhook(work: Work<OrganizationContext>, id: string): Promise<Webhook> {
  const webhook = await lockWebhook(work.tx, work.by.organizationId, id);
  if (webhook.disabled_at !== null) return webhook;
  await markWebhookDisabled(work.tx, webhook.id, work.now, 'requested');
  recordOf(work, webhook, 'webhook.disabled', { reason: 'requested', failingSince: null });
  wakeAfterwards(work);
  return { ...webhook, disabled_at: work.now, disabled_reason: 'requested' };
}

/** The present secret signs along for 24 hours. @throws Problem `not_found` */
export async function rotateSecret(work: Work<OrganizationContext>, id: string): Promise<WebhookWithSecret> {
  const webhook = await lockWebhook(work.tx, work.by.organizationId, id);
  const { secret, columns } = mintSecret(work.keyring, webhook);
  const previousUntil = new Date(work.now.getTime() + oldSecretSignsMs);
  await replaceSecret(work.tx, webhook.id, columns, previousUntil);
  recordOf(work, webhook, 'webhook.secret_rotated', { previousUntil: previousUntil.toISOString() });
  return { webhook: { ...webhook, previous_until: previousUntil }, secret };
}

/** Has an event sent to this endpoint alone, whatever it has asked for. @throws Problem `not_found`, `conflict` */
export async function testWebhook(work: Work<OrganizationContext>, id: string): Promise<Webhook> {
  const webhook = await lockWebhook(work.tx, work.by.organizationId, id);
  requireEnabled(webhook);
  recordOf(work, webhook, 'webhook.tested', {});
  return webhook;
}

/** A partner's endpoint is in the partner's history too. */
export function recordOf(
  work: Work,
  { id, partner_id }: Pick<Webhook, 'id' | 'partner_id'>,
  action: `webhook.${'created' | 'updated' | 'deleted' | 'enabled' | 'disabled' | 'secret_rotated' | 'tested' | 'redelivered'}`,
  details: Record<string, unknown>,
): void {
  record(work, { action, partnerId: partner_id, details: { webhookId: id, ...details } });
}

/** Rows of the queue are locked after the chain's head, as everywhere. */
export function wakeAfterwards(work: Work<OrganizationContext>): void {
  work.beforeCommit.push(() => wakeSender(work.tx, work.by.organizationId));
}
