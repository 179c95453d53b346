import type { KeyId, OrganizationId } from '../core/ids.ts';
import { Secret } from '../crypto/secret.ts';
import { fingerprintOf } from '../crypto/tag.ts';
import { parseToken } from '../crypto/token.ts';
import type { DatabaseClock } from '../db/clock.ts';
import type { ApiKeyRecord } from './api-key-record.ts';
import type { RecordCache } from './key-cache.ts';
import { bucketsOf, type Count, requireCostFits, type UseLimits } from './limits.ts';
import { decide, type VerdictCode, type Wanted } from './policy.ts';
import type { SecretCheck } from './secret-check.ts';
import type { UsageRecorder } from './usage-recorder.ts';

/** The answer to a verification. The key is told only where the presented secret was the right one. */
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
  /** The organization that the caller asks for; null: for all. Another's key is `not_found`. */
  asker: OrganizationId | null;
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
  verify(question: Question): Verdict | Promise<Verdict>;
}

interface VerifierOptions {
  apiKeys: RecordCache<KeyId, ApiKeyRecord>;
  clock: DatabaseClock;
  prefix: string;
  checkSecret: SecretCheck<ApiKeyRecord>;
  limits: UseLimits;
  usage: UsageRecorder;
  /** How many answers there were of each code; introspection asks for two. */
  tally: Record<VerdictCode, number>;
}

const malformed = { code: 'malformed', key: null, count: null } as const;
const notFound = { code: 'not_found', key: null, count: null } as const;

/** Cheapest checks first, each refusing before the next is paid: form, record, secret, state, limits. */
export function createVerifier(options: VerifierOptions): Verifier {
  const { apiKeys, clock, prefix, checkSecret, limits, usage, tally } = options;

  async function find(presented: string, fresh: boolean): Promise<ApiKeyRecord | 'malformed' | undefined> {
    const parsed = parseToken(presented, prefix);
    if (parsed?.kind !== 'k') return 'malformed';
    const record = await apiKeys.get(`key_${parsed.idSuffix}` as KeyId, fresh);
    const matches = await checkSecret(record, new Secret(presented));
    return matches ? record : undefined;
  }

  async function findAndJudge(question: Question): Promise<Verdict> {
    const key = await find(question.key, question.fresh);
    if (key !== 'malformed') return judge(key, question);
    tally.malformed += 1;
    return malformed;
  }

  function judge(key: ApiKeyRecord | undefined, question: Question): Verdict | Promise<Verdict> {
    const { wanted, asker, cost, usesBefore } = question;
    if (key === undefined || (asker !== null && key.organization_id !== asker)) {
      tally.not_found += 1;
      return notFound;
    }
    if (usesBefore !== undefined) return countBefore(key, question, usesBefore);
    const code = decide(key, wanted, new Date(clock.nowMs()));
    if (code !== 'valid') {
      tally[code] += 1;
      // Asked without counting, too: whoever asks so has been presented the key all the same.
      if (code === 'deleted') usage.addDeleted(key, wanted.ip, { isCounted: cost > 0 });
      else if (cost > 0) usage.add(key, 'denied');
      return { code, key, count: null } as Verdict;
    }
    requireCostFits(key, cost);
    const counted = limits.count(bucketsOf(key), cost);
    const conclude = (count: Count): Verdict => {
      if (cost > 0) usage.add(key, count.isExceeded ? 'rateLimited' : 'allowed');
      const counted = count.isExceeded ? 'rate_limited' : 'valid';
      tally[counted] += 1;
      return { code: counted, key, count };
    };
    return counted instanceof Promise ? counted.then(conclude) : conclude(counted);
  }

  /** The answer is the key's state of now. What was let in before a deletion is no use after it. */
  function countBefore(key: ApiKeyRecord, { wanted, cost }: Question, uses: number): Verdict | Promise<Verdict> {
    usage.add(key, 'allowed', uses);
    tally.valid += uses;
    const code = decide(key, wanted, new Date(clock.nowMs()));
    const added = limits.add(bucketsOf(key), cost);
    const conclude = (count: Count) => ({ code, key, count: code === 'valid' ? count : null }) as Verdict;
    return added instanceof Promise ? added.then(conclude) : conclude(added);
  }

  return {
    verify(question) {
      // Of a key that was presented before and found right, form, checksum and tag would say nothing new.
      const known = question.fresh ? undefined : apiKeys.recall(fingerprintOf(new Secret(question.key)));
      return known === undefined ? findAndJudge(question) : judge(known, question);
    },
  };
}
