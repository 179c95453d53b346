import { expireClaims } from '../claims/jobs.ts';
import { announceExpiries, forgetExpiryNotices } from '../expiry-notices/jobs.ts';
import { auditStates } from '../history/state-audit.ts';
import { pruneIdempotency } from '../http/idempotency-store.ts';
import { suspendIdleKeys } from '../keys/idle-job.ts';
import { purgeDeletedKeys } from '../keys/purge-job.ts';
import { pruneLeakReports } from '../leaks/store.ts';
import { wipeSeals } from '../organizations/commands.ts';
import { pruneRefusals } from '../refused-requests/store.ts';
import { foldOldUsage, pruneDeletedUses } from '../verification/usage-store.ts';
import { pruneDeliveries } from '../webhooks/delivery-store.ts';
import type { Job } from './job.ts';

/** All background jobs. To add one, add an entry here; settings that it needs go into `JobSettings`. */
export const jobs: readonly Job[] = [
  {
    name: 'fold_usage',
    description: 'Aggregates old hours of usage into days.',
    schedule: '7 * * * *',
    run: ({ transactor, settings, signal }) =>
      foldOldUsage(transactor, { hourlyDays: settings.usageHourlyDays, signal }),
  },
  {
    name: 'purge_keys',
    description: 'Deletes hash, tag and sealed value of deleted keys whose retention has ended.',
    schedule: '*/10 * * * *',
    run: ({ transactor, settings: { retentionSeconds }, signal }) =>
      purgeDeletedKeys({ transactor, retentionSeconds, signal }),
  },
  {
    name: 'announce_expiries',
    description: 'Records that keys and access tokens expire in 7 days and in 1 day.',
    schedule: '*/5 * * * *',
    run: ({ transactor, signal }) => announceExpiries({ transactor, signal }),
  },
  {
    name: 'suspend_idle_keys',
    description: 'Announces that keys without use will be suspended, and suspends them when the time is over.',
    schedule: '23 * * * *',
    run: ({ transactor, signal }) => suspendIdleKeys({ transactor, signal }),
  },
  {
    name: 'expire_claims',
    description: 'Ends claims whose time is over, and deletes their copies of keys.',
    schedule: '*/5 * * * *',
    run: ({ transactor, signal }) => expireClaims({ transactor, signal }),
  },
  {
    name: 'wipe_seals',
    description:
      'Deletes stored plaintexts of organizations with keyReveal never, if their own request could not finish.',
    schedule: '53 * * * *',
    run: ({ transactor }) => wipeSeals(transactor, null),
  },
  {
    name: 'prune_idempotency',
    description: 'Deletes plaintexts in stored replies after 15 minutes, and the replies after 24 hours.',
    schedule: '*/5 * * * *',
    run: ({ transactor }) => pruneIdempotency(transactor),
  },
  {
    name: 'forget_deleted_uses',
    description: 'Deletes markers of uses of deleted keys; history keeps the events.',
    schedule: '41 * * * *',
    run: ({ transactor }) => pruneDeletedUses(transactor),
  },
  {
    name: 'forget_leak_reports',
    description: 'Deletes markers of reports of leaked keys; history keeps the events.',
    schedule: '43 * * * *',
    run: ({ transactor }) => pruneLeakReports(transactor),
  },
  {
    name: 'forget_expiry_notices',
    description: 'Deletes markers of past expiry notices; history keeps the events.',
    schedule: '47 * * * *',
    run: ({ transactor }) => forgetExpiryNotices(transactor),
  },
  {
    name: 'prune_webhook_deliveries',
    description: 'Deletes webhook deliveries and their attempts 30 days after the event.',
    schedule: '53 * * * *',
    run: ({ transactor }) => pruneDeliveries(transactor),
  },
  {
    name: 'prune_refused_attempts',
    description: 'Deletes counts of rejected attempts after 90 days.',
    schedule: '29 * * * *',
    run: ({ transactor }) => pruneRefusals(transactor),
  },
  {
    name: 'audit_states',
    description:
      'Compares every organization, access token, partner, key and archive with its history, and logs each difference.',
    schedule: '17 3 * * *',
    run: ({ transactor, logger, signal }) => auditStates({ transactor, logger, signal }),
  },
];
