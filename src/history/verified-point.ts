import { type Selectable, sql } from 'kysely';
import type { Keyring } from '../crypto/keyring.ts';
import { isAuthentic, type MacParts, macOf } from '../crypto/mac.ts';
import { type Db, writeTransaction } from '../database/client.ts';
import type { DatabaseClock } from '../database/clock.ts';
import type { VerifiedPointsTable } from '../database/tables/verified-points.ts';

/** How far a chain was found sound. */
export type VerifiedPoint = Omit<Selectable<VerifiedPointsTable>, 'mac' | 'mac_keyring_id'>;

/** What the database has about the last verification of a chain. */
export interface StoredPoint {
  /** The database's time. */
  now: Date;
  /** Undefined if there is none, or none that this keyring made. */
  point: VerifiedPoint | undefined;
  /** Whether the row was changed, moved or written without the keyring. */
  isForged: boolean;
  /** The hash of the event at the point; null if it is missing. */
  hashAtPoint: Buffer | null;
  /** Identifies the row's version; null if there is no row. */
  mac: Buffer | null;
}

interface PointDeps {
  db: Db;
  keyring: Keyring;
  clock: DatabaseClock;
}

type PointRow = Selectable<VerifiedPointsTable> & { now: Date; hashAtPoint: Buffer | null };

export async function readPoint({ db, keyring, clock }: PointDeps, chain: string): Promise<StoredPoint> {
  const { rows } = await sql<PointRow | ({ [Column in keyof PointRow]: null } & { now: Date })>`
    select clock.now, point.*, event.hash as "hashAtPoint"
    from (select ${clock.sqlNow} as now) as clock
    left join verified_points as point on point.chain = ${chain}
    left join history as event on event.chain = point.chain and event.sequence = point.sequence`.execute(db);
  const [row] = rows;
  if (row === undefined) throw new Error('a join with one row on the left returned no row');
  const { now, hashAtPoint, mac, mac_keyring_id, ...point } = row;
  if (mac === null) return { now, point: undefined, isForged: false, hashAtPoint, mac };
  // An entry in LOST_KEYRING_IDS is not accepted: a forged point would hide changes.
  const isKnown = keyring.get(mac_keyring_id) !== undefined;
  const isGenuine = isKnown && isAuthentic(keyring, { mac, mac_keyring_id }, partsOf(point as VerifiedPoint));
  return {
    now,
    point: isGenuine ? (point as VerifiedPoint) : undefined,
    isForged: isKnown && !isGenuine,
    hashAtPoint,
    mac,
  };
}

/** Every chain that has a point, also if its events are gone. */
export async function listVerifiedChains(db: Db): Promise<string[]> {
  const rows = await db.selectFrom('verified_points').select('chain').execute();
  return rows.map(({ chain }) => chain);
}

/**
 * Stores a point, unless another verification has stored one since this one read the row with this MAC.
 * @returns whether it is stored
 */
export async function storePoint(
  { db, keyring }: PointDeps,
  point: VerifiedPoint,
  replaced: Buffer | null,
): Promise<boolean> {
  const row = { ...point, ...macOf(keyring.primary, partsOf(point)) };
  const { numInsertedOrUpdatedRows } = await writeTransaction(db).execute((tx) =>
    tx
      .insertInto('verified_points')
      .values(row)
      .onConflict((conflict) => conflict.column('chain').doUpdateSet(row).where('verified_points.mac', '=', replaced))
      .executeTakeFirstOrThrow(),
  );
  return numInsertedOrUpdatedRows === 1n;
}

function partsOf({ chain, sequence, hash, verified_at, fully_verified_at }: VerifiedPoint): MacParts {
  const [verifiedAt, fullyVerifiedAt] = [verified_at.getTime(), fully_verified_at?.getTime() ?? null];
  return ['verified_point', chain, sequence, hash.toString('base64'), verifiedAt, fullyVerifiedAt];
}
