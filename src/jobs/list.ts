import { auditStates } from '../history/state-audit.ts';
import { pruneIdempotency } from '../http/idempotency-store.ts';
import { announceExpiries, forgetExpiryNotices, purgeDeletedKeys } from '../keys/jobs.ts';
import { wipeSeals } from '../organizations/commands.ts';
import { pruneRefusals } from '../refused-requests/store.ts';
import { foldOldUsage, pruneDeletedUses } from '../verification/usage-store.ts';
import { pruneDeliveries } from '../webhooks/delivery-store.ts';
import type { Job } from './job.ts';

/** Every background job. A new one needs its lines here and nothing else; what it needs to know goes into `JobSettings`. */
export const jobs: readonly Job[] = [
  {
    name: 'fold_usage',
    does: 'Folds old hours of usage into days.',
    schedule: '7 * * * *',
    run: ({ transactor, settings }) => foldOldUsage(transactor, settings.usageHourlyDays),
  },
  {
    name: 'purge_keys',
    does: 'Removes what could check or show a deleted key whose retention has ended.',
    schedule: '*/10 * * * *',
    run: ({ transactor, settings: { retentionSeconds }, signal }) =>
      purgeDeletedKeys({ transactor, retentionSeconds, signal }),
  },
  {
    name: 'announce_expiries',
    does: 'Records that keys are about to expire, 7 days and 1 day ahead.',
    schedule: '*/5 * * * *',
    run: ({ transactor, signal }) => announceExpiries({ transactor, signal }),
  },
  {
    name: 'wipe_seals',
    does: 'Removes plaintexts that an organization no longer wants to be kept, where its own request could not.',
    schedule: '53 * * * *',
    run: ({ transactor }) => wipeSeals(transactor, null),
  },
  {
    name: 'prune_idempotency',
    does: 'Erases plaintexts in replies after 15 minutes, and removes replies after 24 hours.',
    schedule: '*/5 * * * *',
    run: ({ transactor }) => pruneIdempotency(transactor),
  },
  {
    name: 'forget_deleted_uses',
    does: 'Removes notes of hours in which a deleted key was presented; history keeps the event.',
    schedule: '41 * * * *',
    run: ({ transactor }) => pruneDeletedUses(transactor),
  },
  {
    name: 'forget_expiry_notices',
    does: 'Removes notes of announced expiries that are over; history keeps the event.',
    schedule: '47 * * * *',
    run: ({ transactor }) => forgetExpiryNotices(transactor),
  },
  {
    name: 'prune_webhook_deliveries',
    does: 'Removes deliveries of webhooks, with their attempts, 30 days after the event.',
    schedule: '53 * * * *',
    run: ({ transactor }) => pruneDeliveries(transactor),
  },
  {
    name: 'prune_refused_attempts',
    does: 'Removes counts of refused attempts that are 90 days old.',
    schedule: '29 * * * *',
    run: ({ transactor }) => pruneRefusals(transactor),
  },
  {
    name: 'audit_states',
    does: 'Compares every organization, access token, partner and key with what history says of it, and logs each difference.',
    schedule: '17 3 * * *',
    run: ({ transactor, logger, signal }) => auditStates({ transactor, logger, signal }),
  },
];
