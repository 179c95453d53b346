import type { UsageHoursTable } from './usage-hours.ts';

/** Verifications of a key within one day (UTC): the sum of its hours. */
export interface UsageDaysTable extends Omit<UsageHoursTable, 'hour'> {
  day: Date;
}
