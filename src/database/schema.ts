import type { AccessTokensTable } from './tables/access-tokens.ts';
import type { ApiKeysTable } from './tables/api-keys.ts';
import type { DeletedKeyUsesTable } from './tables/deleted-key-uses.ts';
import type { ExpiryNoticesTable } from './tables/expiry-notices.ts';
import type { HistoryTable } from './tables/history.ts';
import type { HistoryHeadsTable } from './tables/history-heads.ts';
import type { IdempotencyKeysTable } from './tables/idempotency-keys.ts';
import type { IdleNoticesTable } from './tables/idle-notices.ts';
import type { InstallationTable } from './tables/installation.ts';
import type { JobRunsTable } from './tables/job-runs.ts';
import type { KeyLastUsesTable } from './tables/key-last-uses.ts';
import type { KeyringEntriesTable } from './tables/keyring-entries.ts';
import type { OrganizationsTable } from './tables/organizations.ts';
import type { PartnersTable } from './tables/partners.ts';
import type { RecoveryRequestsTable } from './tables/recovery-requests.ts';
import type { RefusedAttemptsTable } from './tables/refused-attempts.ts';
import type { StateDifferenceCountsTable } from './tables/state-difference-counts.ts';
import type { UsageDaysTable } from './tables/usage-days.ts';
import type { UsageHoursTable } from './tables/usage-hours.ts';
import type { WebhookAttemptsTable } from './tables/webhook-attempts.ts';
import type { WebhookDeliveriesTable } from './tables/webhook-deliveries.ts';
import type { WebhookEndpointsTable } from './tables/webhook-endpoints.ts';

/** The tables as the service sees them. `migrations/` creates them, with the same names. */
export interface Database {
  installation: InstallationTable;
  keyring_entries: KeyringEntriesTable;
  organizations: OrganizationsTable;
  partners: PartnersTable;
  api_keys: ApiKeysTable;
  access_tokens: AccessTokensTable;
  history: HistoryTable;
  history_heads: HistoryHeadsTable;
  usage_hours: UsageHoursTable;
  usage_days: UsageDaysTable;
  key_last_uses: KeyLastUsesTable;
  recovery_requests: RecoveryRequestsTable;
  expiry_notices: ExpiryNoticesTable;
  idle_notices: IdleNoticesTable;
  deleted_key_uses: DeletedKeyUsesTable;
  idempotency_keys: IdempotencyKeysTable;
  job_runs: JobRunsTable;
  state_difference_counts: StateDifferenceCountsTable;
  webhook_endpoints: WebhookEndpointsTable;
  webhook_deliveries: WebhookDeliveriesTable;
  webhook_attempts: WebhookAttemptsTable;
  refused_attempts: RefusedAttemptsTable;
}
