import type { DatabaseClock } from '../database/clock.ts';
import type { OrganizationId } from '../domain/ids.ts';
import { andThen, type MaybePromise } from '../lib/maybe-promise.ts';
import type { ApiKeyRecord } from './api-key-record.ts';
import type { Credentials, Found } from './credentials.ts';
import { bucketsOf, type Count, requireCostFits, type UseLimits } from './limits.ts';
import { decide, type VerdictCode, type Wanted } from './policy.ts';
import type { UsageRecorder } from './usage-recorder.ts';

/** The answer to a verification. It has the key only where the presented secret was the right one. */
export type Verdict =
  | { code: 'malformed' | 'not_found'; key: null; count: null }
  | {
      code: Exclude<VerdictCode, 'malformed' | 'not_found'>;
      key: ApiKeyRecord;
      /** Where the key's limits were looked at: when nothing else refused it. */
      count: Count | null;
    };

export interface Question {
  /** As the client presented it. */
  key: string;
  wanted: Wanted;
  /** The organization for which the caller asks; null: all of them. Another's key is `not_found`. */
  callerOrganizationId: OrganizationId | null;
  /** How much this use counts; 0 asks without counting. */
  cost: number;
  /** Read the record from the database. */
  fresh: boolean;
  /**
   * That so many uses were let in by an earlier answer: they are counted whatever the key is now, `cost` for all of them.
   * Undefined where somebody asks before a use.
   */
  usesBefore?: number | undefined;
}

export interface Verifier {
  /** @throws Problem `overloaded` where the argon2id path is asked too often, `unavailable`, `cost_exceeds_limit` */
  verify(question: Question): MaybePromise<Verdict>;
}

interface VerifierOptions {
  credentials: Pick<Credentials, 'findApiKey'>;
  clock: DatabaseClock;
  limits: UseLimits;
  usage: UsageRecorder;
  /** How many answers there were of each code; introspection asks for two. */
  tally: Record<VerdictCode, number>;
}

const malformed = { code: 'malformed', key: null, count: null } as const;
const notFound = { code: 'not_found', key: null, count: null } as const;

/** Cheapest checks first, each refusing before the next is paid: form, record, secret, state, limits. */
export function createVerifier({ credentials, clock, limits, usage, tally }: VerifierOptions): Verifier {
  function judge(key: Found<ApiKeyRecord>, question: Question): MaybePromise<Verdict> {
    const { wanted, callerOrganizationId, cost, usesBefore } = question;
    if (key === 'malformed') {
      tally.malformed += 1;
      return malformed;
    }
    if (key === undefined || (callerOrganizationId !== null && key.organization_id !== callerOrganizationId)) {
      tally.not_found += 1;
      return notFound;
    }
    if (usesBefore !== undefined) return countBefore(key, question, usesBefore);
    const code = decide(key, wanted, new Date(clock.nowMs()));
    if (code !== 'valid') {
      tally[code] += 1;
      // Also where nothing is counted: the deleted key was presented all the same.
      if (code === 'deleted') usage.addDeleted(key, wanted.ip, { isCounted: cost > 0 });
      else if (cost > 0) usage.add(key, 'denied');
      return { code, key, count: null } as Verdict;
    }
    requireCostFits(key, cost);
    return andThen(limits.count(bucketsOf(key), cost), (count) => {
      if (cost > 0) usage.add(key, count.isExceeded ? 'rateLimited' : 'allowed');
      const counted = count.isExceeded ? 'rate_limited' : 'valid';
      tally[counted] += 1;
      return { code: counted, key, count };
    });
  }

  /** The answer is the key's state of now. What was let in before a deletion is no use after it. */
  function countBefore(key: ApiKeyRecord, { wanted, cost }: Question, uses: number): MaybePromise<Verdict> {
    usage.add(key, 'allowed', uses);
    tally.valid += uses;
    const code = decide(key, wanted, new Date(clock.nowMs()));
    return andThen(
      limits.count(bucketsOf(key), cost, { isLetIn: true }),
      (count) => ({ code, key, count: code === 'valid' ? count : null }) as Verdict,
    );
  }

  return {
    verify: (question) => andThen(credentials.findApiKey(question.key, question.fresh), (key) => judge(key, question)),
  };
}
