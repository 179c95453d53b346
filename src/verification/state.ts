import type { FastifyBaseLogger } from 'fastify';
import { sql } from 'kysely';
import type { Keyring } from '../crypto/keyring.ts';
import { type ChangeFeed, followChanges } from '../database/change-feed.ts';
import type { Db } from '../database/client.ts';
import type { DatabaseClock } from '../database/clock.ts';
import { joinSchema, SchemaMismatch } from '../database/migrator.ts';
import type { Transactor } from '../database/work.ts';
import { createDeletedUses } from './deleted-uses.ts';
import { createMemoryLimits, type UseLimits } from './limits.ts';
import { createRecords, type Records } from './records.ts';
import { createSharedLimits } from './shared-limits.ts';
import { createTokenUses, type TokenUses } from './token-uses.ts';
import { createUsageRecorder, type UsageRecorder } from './usage-recorder.ts';

/** The in-memory state of verification, and the change feed that keeps it current. */
export interface VerificationState {
  feed: ChangeFeed;
  records: Records;
  limits: UseLimits;
  usage: UsageRecorder;
  tokenUses: TokenUses;
  /** Resolves once the limits are counted in their final place: Redis or memory. */
  ready: Promise<void>;
  /** Writes pending usage and closes the connections. */
  close(): Promise<void>;
}

export interface VerificationStateOptions {
  db: Db;
  /** URL of the connection that listens for changes: not through a transaction pooler. */
  listenUrl: string;
  /** Undefined: rate limits are counted in this process. */
  redisUrl: string | undefined;
  keyring: Keyring;
  capacity: number;
  staleMs: number;
  clock: DatabaseClock;
  onAppended: Transactor['onAppended'];
  onRecorded?: Transactor['onRecorded'];
  /** Called if a newer version has removed from the schema what this one uses: the process must end. */
  onSchemaMismatch?: (error: SchemaMismatch) => void;
  logger: Pick<FastifyBaseLogger, 'info' | 'warn' | 'error'>;
}

/** Starts the change feed and creates the caches, limits and the usage recorder. */
export function startVerificationState(options: VerificationStateOptions): VerificationState {
  const { db, clock, logger } = options;
  const feed = followChanges({
    url: options.listenUrl,
    notify: async (channel, payload) => {
      await sql`select pg_notify(${channel}, ${payload})`.execute(db);
    },
    clock,
    onSession: async (session) => {
      await joinSchema(session, db).catch((error: unknown) => {
        if (error instanceof SchemaMismatch) options.onSchemaMismatch?.(error);
        throw error;
      });
    },
    onLiveChange: (isLive, cause) => {
      if (isLive) logger.info('The change feed is connected; verification answers from memory.');
      else
        logger.warn(
          { err: cause },
          'The change feed is disconnected; each verification reads its record from the database.',
        );
    },
  });
  const { keyring, capacity, staleMs, redisUrl } = options;
  const records = createRecords({ db, clock, feed, logger, keyring, capacity, staleMs });
  const { onAppended, onRecorded = () => undefined } = options;
  const transactor = { db, keyring, clock, onAppended, onRecorded };
  const deletedUses = createDeletedUses({ transactor, clock, logger });
  const usage = createUsageRecorder({ db, clock, deletedUses, logger });
  const tokenUses = createTokenUses({ db, clock, logger });
  const shared = redisUrl === undefined ? undefined : createSharedLimits({ url: redisUrl, logger });
  return {
    feed,
    records,
    limits: shared ?? createMemoryLimits(),
    usage,
    tokenUses,
    ready: shared?.decided ?? Promise.resolve(),
    async close() {
      await Promise.all([usage.close(), tokenUses.close(), shared?.close(), feed.close()]);
    },
  };
}
