import { foldOldUsage } from '../verification/usage-store.ts';
import type { Job } from './job.ts';

/** Every background job. A new one needs its lines here and nothing else; what it needs to know goes into `JobSettings`. */
export const jobs: readonly Job[] = [
  {
    name: 'fold_usage',
    does: 'Folds old hours of usage into days.',
    schedule: '7 * * * *',
    run: ({ transactor, settings }) => foldOldUsage(transactor, settings.usageHourlyDays),
  },
];
