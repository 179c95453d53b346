import type { DatabaseClock } from '../database/clock.ts';
import type { OrganizationId } from '../domain/ids.ts';
import { andThen, type MaybePromise } from '../lib/maybe-promise.ts';
import type { ApiKeyRecord } from './api-key-record.ts';
import type { Credentials, LookupResult } from './credentials.ts';
import { bucketsOf, type Count, requireCostFits, type UseLimits } from './limits.ts';
import { decide, type RequestedUse, type VerdictCode } from './policy.ts';
import type { UsageRecorder } from './usage-recorder.ts';

/** The result of a verification. It has the key only if the presented secret was correct. */
export type Verdict =
  | { code: 'malformed' | 'not_found'; key: null; count: null }
  | {
      code: Exclude<VerdictCode, 'malformed' | 'not_found'>;
      key: ApiKeyRecord;
      /** Null if something other than a limit rejected the key. */
      count: Count | null;
    };

/** One key to verify. */
export interface VerificationRequest {
  /** As the client presented it. */
  key: string;
  requested: RequestedUse;
  /** The caller's organization; null: all. A key of another organization is `not_found`. */
  callerOrganizationId: OrganizationId | null;
  /** How much this use counts; 0 counts nothing. */
  cost: number;
  /** Read the record from the database. */
  fresh: boolean;
  /**
   * Number of uses that a cached verdict already allowed: they are counted whatever the key's state is now, with `cost` for
   * all of them. Undefined: the use has not happened yet.
   */
  reportedUses?: number | undefined;
}

/** Verifies API keys. */
export interface Verifier {
  /** @throws Problem `overloaded` if there are too many argon2id attempts, `unavailable`, `cost_exceeds_limit` */
  verify(request: VerificationRequest): MaybePromise<Verdict>;
}

interface VerifierOptions {
  credentials: Pick<Credentials, 'findApiKey'>;
  clock: DatabaseClock;
  limits: UseLimits;
  usage: UsageRecorder;
  /** Numbers of verdicts by code; introspection adds two. */
  tally: Record<VerdictCode, number>;
}

const malformed = { code: 'malformed', key: null, count: null } as const;
const notFound = { code: 'not_found', key: null, count: null } as const;

/** Creates the verifier. It checks in order of cost: form, record, secret, state, limits. */
export function createVerifier({ credentials, clock, limits, usage, tally }: VerifierOptions): Verifier {
  function judge(key: LookupResult<ApiKeyRecord>, request: VerificationRequest): MaybePromise<Verdict> {
    const { requested, callerOrganizationId, cost, reportedUses } = request;
    if (key === 'malformed') {
      tally.malformed += 1;
      return malformed;
    }
    if (key === undefined || (callerOrganizationId !== null && key.organization_id !== callerOrganizationId)) {
      tally.not_found += 1;
      return notFound;
    }
    if (reportedUses !== undefined) return countReportedUses(key, request, reportedUses);
    const code = decide(key, requested, new Date(clock.nowMs()));
    if (code !== 'valid') {
      tally[code] += 1;
      // Even at cost 0, because history records every use of a deleted key.
      if (code === 'deleted') usage.addUseOfDeletedKey(key, requested.ip, { isCounted: cost > 0 });
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

  /** Returns the key's state now. Uses that were allowed before a deletion do not count as used after deletion. */
  function countReportedUses(
    key: ApiKeyRecord,
    { requested, cost }: VerificationRequest,
    uses: number,
  ): MaybePromise<Verdict> {
    usage.add(key, 'allowed', uses);
    tally.valid += uses;
    const code = decide(key, requested, new Date(clock.nowMs()));
    return andThen(
      limits.count(bucketsOf(key), cost, { isAlreadyAllowed: true }),
      (count) => ({ code, key, count: code === 'valid' ? count : null }) as Verdict,
    );
  }

  return {
    verify: (request) => andThen(credentials.findApiKey(request.key, request), (key) => judge(key, request)),
  };
}
