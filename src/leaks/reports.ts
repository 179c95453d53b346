import type { FastifyBaseLogger } from 'fastify';
import { LRUCache } from 'lru-cache';
import pLimit from 'p-limit';
import { type ActorContext, type Transactor, transact } from '../database/work.ts';
import { Problem } from '../domain/errors.ts';
import type { AccessTokenId, KeyId } from '../domain/ids.ts';
import { dayMs, startOfPeriod } from '../lib/durations.ts';
import type { ApiKeyRecord } from '../verification/api-key-record.ts';
import type { Credentials } from '../verification/credentials.ts';
import { type LeakReport, placeHash, type ReportedLeak, reportLeak } from './commands.ts';
import type { LeakAction, LeakResult } from './policy.ts';

/** The answer to a report. Anonymous reporters do not get it. */
export interface LeakAnswer {
  /** Whether the text is a credential of this installation, of whatever kind and state. */
  isCredential: boolean;
  keyId: KeyId | null;
  action: LeakAction | null;
}

/** Takes reports of leaked keys. */
export interface LeakReports {
  /**
   * Recognizes the key, records the report and acts, all before it returns.
   * @param by with an organization, keys of other organizations are unknown
   * @throws Problem `overloaded`, `unavailable`
   */
  report(found: string, report: LeakReport, by: ActorContext): Promise<LeakAnswer>;
}

export interface LeakReportsOptions {
  transactor: Transactor;
  credentials: Pick<Credentials, 'recognize'>;
  retentionSeconds: number;
  tally: Record<LeakResult, number>;
  logger: Pick<FastifyBaseLogger, 'warn'>;
}

/** Transactions at once: reports must not take the connections of other requests. */
const transactionsAtOnce = 2;

/** Reports of this day that this replica remembers, so that repeating them needs no transaction. */
const rememberedReports = 10_000;

const nothing: LeakAnswer = { isCredential: false, keyId: null, action: null };

export function createLeakReports(options: LeakReportsOptions): LeakReports {
  const { transactor, credentials, retentionSeconds, tally, logger } = options;
  /** What reports of this day did, by key, day and place; for a key with too many places by key and day. */
  const known = new LRUCache<string, ReportedLeak>({ max: rememberedReports });
  /** Keys about which there is nothing to record. If a key changes, the cache has another copy of its record. */
  const ended = new WeakSet<ApiKeyRecord>();
  const warned = new LRUCache<string, true>({ max: rememberedReports });
  const inTurn = pLimit(transactionsAtOnce);

  const today = () => startOfPeriod(transactor.clock.nowMs(), dayMs);

  async function reportKey(key: ApiKeyRecord, report: LeakReport, by: ActorContext): Promise<LeakAnswer> {
    const { result, action } = await inTurn(() => recordOnce(key, report, by));
    tally[result] += 1;
    return { isCredential: true, keyId: key.id, action };
  }

  async function recordOnce(key: ApiKeyRecord, report: LeakReport, by: ActorContext): Promise<ReportedLeak> {
    if (ended.has(key)) return { result: 'ended', action: 'none' };
    const day = `${key.id} ${today()}`;
    const place = `${day} ${placeHash(report).toString('base64')}`;
    const earlier = known.get(place) ?? known.get(day);
    if (earlier !== undefined) return earlier;
    const context = { ...by, organizationId: key.organization_id };
    const reported = await transact(transactor, context, (work) => reportLeak(work, key.id, report, retentionSeconds));
    const { result, action } = reported;
    if (result === 'ended') ended.add(key);
    else if (result === 'too_many') known.set(day, reported);
    else known.set(place, { result: 'repeated', action });
    return reported;
  }

  /** Warns once per credential and day. */
  function warn(id: KeyId | AccessTokenId, result: LeakResult, message: string): void {
    tally[result] += 1;
    const name = `${id} ${today()}`;
    if (!warned.has(name)) logger.warn({ id }, message);
    warned.set(name, true);
  }

  return {
    async report(found, report, by) {
      const recognized = await credentials.recognize(found);
      if (recognized?.kind === 'api_key' && isKnownTo(by, recognized.record)) {
        try {
          return await reportKey(recognized.record, report, by);
        } catch (error) {
          // The key was purged since it was recognized.
          if (!(error instanceof Problem) || error.code !== 'not_found') throw error;
        }
      } else if (recognized?.kind === 'access_token' && isKnownTo(by, recognized.record)) {
        warn(recognized.record.id, 'access_token', 'This access token was reported as leaked. Delete it.');
        return { ...nothing, isCredential: true };
      } else if (recognized?.kind === 'unchecked') {
        const message = 'Somebody reported this credential as leaked. It is not checked: the keyring lacks its entry.';
        warn(recognized.id, 'unchecked', message);
        return nothing;
      }
      tally.unknown += 1;
      return nothing;
    },
  };
}

/** A record of no organization, such as an operator's token, belongs to the installation. */
function isKnownTo({ organizationId }: ActorContext, record: { organization_id: string | null }): boolean {
  return organizationId === null || record.organization_id === organizationId;
}
