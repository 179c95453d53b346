import { type Selectable, sql } from 'kysely';
import type { Db, Tx } from '../database/client.ts';
import type { DisabledReason, WebhookEndpointsTable } from '../database/tables/webhook-endpoints.ts';
import { requireFound } from '../domain/errors.ts';
import type { OrganizationId, PartnerId, WebhookId } from '../domain/ids.ts';
import type { MintedSecret, SecretColumns } from './mint.ts';

/** An endpoint without its secrets, which no view contains. */
export type Webhook = Omit<Selectable<WebhookEndpointsTable>, keyof SecretColumns>;

const columns = [
  'id',
  'organization_id',
  'partner_id',
  'url',
  'events',
  'description',
  'previous_until',
  'created_at',
  'created_by',
  'failing_since',
  'disabled_at',
  'disabled_reason',
  'deleted_at',
] as const;

/** @throws Problem `not_found`, also for another organization's endpoint and for one that was deleted */
export async function getWebhook(db: Db, organizationId: OrganizationId, id: string): Promise<Webhook> {
  return requireFound(await selectWebhook(db, organizationId, id).executeTakeFirst(), 'webhook in this organization');
}

/** Locks a webhook for a change. @throws Problem `not_found`, as `getWebhook` */
export async function lockWebhook(tx: Tx, organizationId: OrganizationId, id: string): Promise<Webhook> {
  return requireFound(
    await selectWebhook(tx, organizationId, id).forNoKeyUpdate().executeTakeFirst(),
    'webhook in this organization',
  );
}

function selectWebhook(db: Db, organizationId: OrganizationId, id: string) {
  return db
    .selectFrom('webhook_endpoints')
    .select(columns)
    .where('organization_id', '=', organizationId)
    .where('id', '=', id as WebhookId)
    .where('deleted_at', 'is', null);
}

/** Newest first, up to `limit + 1`. */
export async function listWebhooks(
  db: Db,
  organizationId: OrganizationId,
  filter: { partnerId: PartnerId | undefined },
  page: { limit: number; before: WebhookId | undefined },
): Promise<Webhook[]> {
  let query = db
    .selectFrom('webhook_endpoints')
    .select(columns)
    .where('organization_id', '=', organizationId)
    .where('deleted_at', 'is', null)
    .orderBy('id', 'desc')
    .limit(page.limit + 1);
  if (page.before !== undefined) query = query.where('id', '<', page.before);
  if (filter.partnerId !== undefined) query = query.where('partner_id', '=', filter.partnerId);
  return query.execute();
}

/** Lock the organization before calling this to add a webhook. */
export async function countWebhooks(tx: Tx, organizationId: OrganizationId): Promise<number> {
  const { count } = await tx
    .selectFrom('webhook_endpoints')
    .select(({ fn }) => fn.countAll<number>().as('count'))
    .where('organization_id', '=', organizationId)
    .where('deleted_at', 'is', null)
    .executeTakeFirstOrThrow();
  return count;
}

export type NewWebhookRow = Pick<
  Webhook,
  'id' | 'organization_id' | 'partner_id' | 'url' | 'events' | 'description' | 'created_at' | 'created_by'
>;

export async function insertWebhook(tx: Tx, webhook: NewWebhookRow, secret: MintedSecret['columns']): Promise<Webhook> {
  return tx
    .insertInto('webhook_endpoints')
    .values({ ...webhook, ...secret, created_by: JSON.stringify(webhook.created_by) })
    .returning(columns)
    .executeTakeFirstOrThrow();
}

export async function updateWebhook(
  tx: Tx,
  id: WebhookId,
  fields: Pick<Webhook, 'url' | 'events' | 'description' | 'failing_since'>,
): Promise<void> {
  await tx.updateTable('webhook_endpoints').set(fields).where('id', '=', id).execute();
}

export async function markWebhookEnabled(tx: Tx, id: WebhookId): Promise<void> {
  await tx
    .updateTable('webhook_endpoints')
    .set({ disabled_at: null, disabled_reason: null, failing_since: null })
    .where('id', '=', id)
    .execute();
}

export async function markWebhookDisabled(tx: Tx, id: WebhookId, at: Date, reason: DisabledReason): Promise<void> {
  await tx
    .updateTable('webhook_endpoints')
    .set({ disabled_at: at, disabled_reason: reason })
    .where('id', '=', id)
    .execute();
}

/** Also deletes the secrets. */
export async function markWebhookDeleted(tx: Tx, id: WebhookId, deletedAt: Date): Promise<void> {
  await tx
    .updateTable('webhook_endpoints')
    .set({
      deleted_at: deletedAt,
      sealed: null,
      sealed_keyring_id: null,
      previous_sealed: null,
      previous_sealed_keyring_id: null,
      previous_until: null,
    })
    .where('id', '=', id)
    .execute();
}

/**
 * Makes the current secret the previous one, which also signs until `previousUntil`. The old previous one is dropped.
 */
export async function replaceSecret(
  tx: Tx,
  id: WebhookId,
  secret: MintedSecret['columns'],
  previousUntil: Date,
): Promise<void> {
  await tx
    .updateTable('webhook_endpoints')
    .set(({ ref }) => ({
      ...secret,
      previous_sealed: ref('sealed'),
      previous_sealed_keyring_id: ref('sealed_keyring_id'),
      previous_until: previousUntil,
    }))
    .where('id', '=', id)
    .execute();
}

/** @param since null if an attempt has succeeded */
export async function markFailingSince(tx: Tx, id: WebhookId, since: Date | null): Promise<void> {
  await tx.updateTable('webhook_endpoints').set({ failing_since: since }).where('id', '=', id).execute();
}

/** An endpoint as the sender needs it, including disabled and deleted ones. */
export type SendingWebhook = Pick<
  Selectable<WebhookEndpointsTable>,
  keyof SecretColumns | 'id' | 'organization_id' | 'partner_id' | 'url' | 'previous_until' | 'failing_since'
> & { is_live: boolean };

/** Locks an endpoint, so that one sender at a time decides what is sent to it. */
export async function lockForSending(tx: Tx, id: WebhookId): Promise<SendingWebhook | undefined> {
  return tx
    .selectFrom('webhook_endpoints')
    .select([
      'id',
      'organization_id',
      'partner_id',
      'url',
      'sealed',
      'sealed_keyring_id',
      'previous_sealed',
      'previous_sealed_keyring_id',
      'previous_until',
      'failing_since',
      sql<boolean>`disabled_at is null and deleted_at is null`.as('is_live'),
    ])
    .where('id', '=', id)
    .forNoKeyUpdate()
    .executeTakeFirst();
}

/** The webhook must be locked. */
export async function replaceSeals(tx: Tx, id: WebhookId, columns: SecretColumns): Promise<void> {
  await tx.updateTable('webhook_endpoints').set(columns).where('id', '=', id).execute();
}
