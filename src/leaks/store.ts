import type { Tx } from '../database/client.ts';
import { currentTime } from '../database/credential.ts';
import type { LeakReportsTable } from '../database/tables/leak-reports.ts';
import type { Transactor } from '../database/work.ts';
import type { KeyId } from '../domain/ids.ts';
import { dayMs } from '../lib/durations.ts';

/** A report of a key at a place, once per day. */
export type LeakMark = LeakReportsTable;

/** The marks of one key and day: at most `placesInDay`. Lock the key before. */
export async function marksOfDay(tx: Tx, keyId: KeyId, day: Date): Promise<LeakMark[]> {
  return tx.selectFrom('leak_reports').selectAll().where('key_id', '=', keyId).where('day', '=', day).execute();
}

export async function insertMark(tx: Tx, mark: LeakMark): Promise<void> {
  await tx.insertInto('leak_reports').values(mark).execute();
}

/** Deletes the marks of days that ended a day ago. @returns how many */
export async function pruneLeakReports({ db, clock }: Pick<Transactor, 'db' | 'clock'>): Promise<number> {
  const now = await currentTime(db, clock);
  const { numDeletedRows } = await db
    .deleteFrom('leak_reports')
    .where('day', '<', new Date(now.getTime() - 2 * dayMs))
    .executeTakeFirstOrThrow();
  return Number(numDeletedRows);
}
