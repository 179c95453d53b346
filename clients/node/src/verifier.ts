import { startPeriodicTask } from '../../../src/lib/periodic-task.ts';
import { followChanges } from './change-stream.ts';
import {
  grantName,
  hashOf,
  idsOf,
  type KnownKey,
  KnownKeys,
  learnLimit,
  limitOf,
  Unreported,
  type UnreportedUses,
} from './known-keys.ts';
import { LruMap } from './lru-map.ts';
import { type BatchEntry, CallFailed, type EntryAnswer, isVerdict, type Service } from './service.ts';
import {
  addressOf,
  type ClientEvent,
  CostExceedsLimit,
  LatchkeyUnavailable,
  malformed,
  type Question,
  requireScopes,
  type Verdict,
} from './verdict.ts';
import { createVerifyQueue, type Report } from './verify-queue.ts';

export interface Verifier {
  /**
   * Answers at once for a cached key, otherwise with a promise.
   * @throws LatchkeyUnavailable, CostExceedsLimit, at once or through the promise
   */
  verify(question: Question): Verdict | Promise<Verdict>;
  /** Whether cached answers may be used: the stream of changes is connected. */
  isLive(): boolean;
  /** Reports the remaining uses and closes the stream. */
  close(): Promise<void>;
}

export interface VerifierOptions {
  service: Service;
  cacheMs: number;
  /** The maximum number of cached keys. */
  cacheSize: number;
  reportEveryMs: number;
  onEvent: ((event: ClientEvent) => void) | undefined;
}

/** A call in progress. */
interface Lookup {
  verdict: Promise<Verdict>;
  /** Ids that changed meanwhile: the answer may be outdated. */
  changed: Set<string>;
  mustNotBeKept: boolean;
}

/**
 * The form of a key. Anything else is rejected here: a client could otherwise send so much that no request to Latchkey
 * has room for other keys.
 */
const keyForm = /^[\x20-\x7e]+$/;
const longestKey = 512;
const greatestCost = 1_000;

/** The same failure is reported again after this time. */
const troubleEveryMs = 60_000;
const troublesRemembered = 50;

/** Verifies keys with Latchkey, and from memory while changes are followed. */
export function createVerifier({ service, cacheMs, cacheSize, reportEveryMs, onEvent }: VerifierOptions): Verifier {
  const known = new KnownKeys(cacheSize);
  const unreported = new Unreported(known);
  /** Calls in progress, which equal questions share. */
  const shared = new Map<string, Lookup>();
  const running = new Set<Lookup>();
  /** When each failure was reported last (monotonic milliseconds). */
  const troubles = new LruMap<string, number>(troublesRemembered);
  /** The failure of the last call; undefined if it was answered. */
  let failure: CallFailed | undefined;
  let probe: Promise<void> | undefined;
  let isClosed = false;

  const queue = createVerifyQueue({ service, takeReports, onCalled });
  const stream = followChanges({
    service,
    onChange(ids) {
      known.forgetDependents(ids);
      for (const lookup of running) for (const id of ids) lookup.changed.add(id);
      // Questions from now on must not share an earlier call.
      shared.clear();
    },
    onReset() {
      known.clear();
      for (const lookup of running) lookup.mustNotBeKept = true;
      shared.clear();
    },
    onStateChange(isLive, cause) {
      onEvent?.(isLive ? { type: 'live' } : { type: 'not_live', reason: textOf(cause) });
    },
    onTrouble,
  });
  const reporting = startPeriodicTask({ run: () => queue.flushReports(), everyMs: reportEveryMs });

  function onTrouble(error: Error): void {
    const nowMs = performance.now();
    if (nowMs - (troubles.peek(error.message) ?? Number.NEGATIVE_INFINITY) < troubleEveryMs) return;
    troubles.set(error.message, nowMs);
    onEvent?.({ type: 'trouble', reason: error.message });
  }

  function onCalled(failed: CallFailed | undefined): void {
    failure = failed;
    if (failure === undefined) return;
    onTrouble(failure);
    // A backend whose token is rejected must not accept any request.
    if (failure.why === 'refused') known.clear();
  }

  function takeReports(most: number): Report[] {
    return unreported.take(most, performance.now()).map((uses) => ({
      entry: uses.entry,
      answered(answer, sentAtMs) {
        // Uses that could not be counted now are reported again. An entry that is invalid would be rejected each time.
        if (!isVerdict(answer) && answer.status >= 500) {
          unreported.putBack(uses);
          return;
        }
        unreported.settle(uses);
        if (isVerdict(answer)) confirm(uses, answer, sentAtMs);
      },
      failed({ why }) {
        if (why === 'broken') unreported.abandon(uses);
        else unreported.putBack(uses);
      },
    }));
  }

  /**
   * The replica that answered may not know a recent change, so its answer confirms and removes, but adds no cached key.
   */
  function confirm({ key, grant }: Pick<UnreportedUses, 'key' | 'grant'>, verdict: Verdict, sentAtMs: number): void {
    learnLimit(key, verdict.rateLimit, performance.now());
    if (!known.has(key)) return;
    if (verdict.valid || verdict.code === 'rate_limited') {
      if (key.grants.has(grant)) key.grants.set(grant, sentAtMs);
    } else if (verdict.code !== 'insufficient_scope') known.forget(key.hash);
  }

  /** The cached key, if it is valid for this question. */
  function grantOf(key: KnownKey, question: Question, nowMs: number): string | undefined {
    const grant = grantName(key.facts, question);
    const grantedAtMs = key.grants.get(grant);
    return grantedAtMs === undefined || nowMs - grantedAtMs >= cacheMs ? undefined : grant;
  }

  function hasExpired({ expiresAtMs }: KnownKey, nowMs: number): boolean {
    return expiresAtMs <= stream.serverNowMs(nowMs);
  }

  function noteRefusal(key: KnownKey, { cost = 1 }: Question, { valid, rateLimit }: Verdict, nowMs: number): void {
    key.refused = undefined;
    if (valid || rateLimit === null) return;
    // Latchkey sends whole seconds, rounded up: one second less is certainly within the window.
    key.refused = { cost, untilMs: nowMs + Math.min(1_000, (rateLimit.resetSeconds - 1) * 1_000) };
  }

  function verified(verdict: Verdict, source: 'memory' | 'latchkey' | 'outage'): Verdict {
    onEvent?.({ type: 'verified', code: verdict.code, source });
    return verdict;
  }

  function fromMemory(question: Question, hash: string, way: 'live' | 'stale'): Verdict | undefined {
    const verdict = decideFromMemory(question, hash, way);
    return verdict && verified(verdict, way === 'live' ? 'memory' : 'outage');
  }

  /** @param way `stale`: Latchkey cannot be reached */
  function decideFromMemory(question: Question, hash: string, way: 'live' | 'stale'): Verdict | undefined {
    const key = known.get(hash);
    const nowMs = performance.now();
    if (key === undefined || (way === 'live' && !stream.isAlive(nowMs))) return undefined;
    const grant = grantOf(key, question, nowMs);
    if (grant === undefined) return undefined;
    if (!hasScopes(key.facts, question)) {
      // Latchkey counts the rejected use.
      return way === 'live' ? undefined : { ...key.facts, valid: false, code: 'insufficient_scope' };
    }
    if (hasExpired(key, nowMs)) return way === 'live' ? undefined : { ...key.facts, valid: false, code: 'expired' };
    const { cost = 1 } = question;
    const rateLimited = (): Verdict => ({
      ...key.facts,
      valid: false,
      code: 'rate_limited',
      rateLimit: limitOf(key, nowMs),
    });
    if (cost > 0 && key.refused !== undefined && nowMs < key.refused.untilMs && cost >= key.refused.cost) {
      return rateLimited();
    }
    const { ownerLimit, keyLimit } = key;
    if (way === 'live') {
      if (cost > 0 && !(ownerLimit.hasCredit(cost, nowMs) && keyLimit.hasCredit(cost, nowMs))) return undefined;
    } else {
      if (!(ownerLimit.mayFit(cost) && keyLimit.mayFit(cost))) {
        throw new CostExceedsLimit(`A use of cost ${cost} is more than a whole window of the API key's limit allows.`);
      }
      if (!(ownerLimit.hasRest(cost, nowMs) && keyLimit.hasRest(cost, nowMs))) return rateLimited();
    }
    if (cost > 0) unreported.add(key, grant, question, cost, nowMs);
    return { ...key.facts, rateLimit: limitOf(key, nowMs) };
  }

  async function ask(question: Question, hash: string): Promise<Verdict> {
    if (failure !== undefined) return askWhileFailing(question, hash);
    const { permission, scopes = [] } = question;
    const name = [hash, permission, addressOf(question), ...scopes].join(' ');
    // A cached key is only asked about because of its limit, and that question is not shared.
    const mayShare = known.get(hash) === undefined && stream.isAlive(performance.now());
    const same = mayShare ? shared.get(name) : undefined;
    if (same !== undefined) {
      // The shared question's cost was too high, so this question is asked alone.
      const verdict = await same.verdict.catch((error: unknown) =>
        error instanceof CostExceedsLimit ? undefined : staleOr(error, question, hash),
      );
      if (verdict !== undefined && !verdict.valid && verdict.code !== 'rate_limited')
        return verified(verdict, 'latchkey');
      const own = fromMemory(question, hash, 'live');
      if (own !== undefined) return own;
    }
    const lookup: Lookup = { verdict: Promise.resolve(malformed), changed: new Set(), mustNotBeKept: false };
    lookup.verdict = lookUp(lookup, question, hash).finally(() => {
      running.delete(lookup);
      if (shared.get(name) === lookup) shared.delete(name);
    });
    running.add(lookup);
    shared.set(name, lookup);
    return lookup.verdict.then(
      (verdict) => verified(verdict, 'latchkey'),
      (error: unknown) => staleOr(error, question, hash),
    );
  }

  /** @throws CallFailed, LatchkeyUnavailable, CostExceedsLimit */
  async function lookUp(lookup: Lookup, question: Question, hash: string): Promise<Verdict> {
    const askedAtMs = performance.now();
    const entry = entryOf(question);
    const isAlive = stream.isAlive(askedAtMs);
    const key = known.get(hash);
    const isGood = key !== undefined && isAlive && !hasExpired(key, askedAtMs);
    const grant = isGood ? grantOf(key, question, askedAtMs) : undefined;
    if (key !== undefined && grant !== undefined) {
      // The key is valid as far as is known; this call is about its limit.
      const verdict = verdictIn(await queue.ask(entry, false));
      confirm({ key, grant }, verdict, askedAtMs);
      noteRefusal(key, question, verdict, performance.now());
      return verdict;
    }
    // An answer that is cached is read from the database: the replica that answers may not know a change that this
    // stream has already delivered.
    const verdict = verdictIn(await queue.ask(entry, isAlive && cacheMs > 0));
    if (lookup.mustNotBeKept || idsOf(verdict).some((id) => lookup.changed.has(id))) return verdict;
    if (verdict.valid || verdict.code === 'rate_limited') {
      const nowMs = performance.now();
      const learned = known.learn(hash, question, verdict, askedAtMs);
      learnLimit(learned, verdict.rateLimit, nowMs);
      noteRefusal(learned, question, verdict, nowMs);
    } else if (!aboutThisUse.has(verdict.code)) known.forget(hash);
    return verdict;
  }

  /** @throws LatchkeyUnavailable, CostExceedsLimit */
  function staleOr(error: unknown, question: Question, hash: string): Verdict {
    if (error instanceof CostExceedsLimit) throw error;
    const stale = fromMemory(question, hash, 'stale');
    if (stale !== undefined) return stale;
    if (error instanceof LatchkeyUnavailable) {
      onTrouble(error);
      throw error;
    }
    throw new LatchkeyUnavailable(error instanceof CallFailed ? error.message : String(error), { cause: error });
  }

  /**
   * After a failed call, only one call at a time probes Latchkey, and only questions about unknown keys wait for it.
   */
  async function askWhileFailing(question: Question, hash: string): Promise<Verdict> {
    probe ??= queue
      .ask({ ...entryOf(question), cost: 0 }, false)
      .then(
        () => undefined,
        () => undefined,
      )
      .finally(() => {
        probe = undefined;
      });
    const stale = fromMemory(question, hash, 'stale');
    if (stale !== undefined) return stale;
    await probe;
    if (failure !== undefined) throw new LatchkeyUnavailable(failure.message, { cause: failure });
    return ask(question, hash);
  }

  function reportUnavailable(error: unknown): never {
    if (error instanceof LatchkeyUnavailable) onEvent?.({ type: 'unavailable', reason: error.message });
    throw error;
  }

  return {
    verify(question) {
      if (isClosed) throw new LatchkeyUnavailable('The client is closed.');
      const { key, scopes, cost = 1 } = question;
      requireScopes(scopes);
      if (!Number.isInteger(cost) || cost < 0 || cost > greatestCost) {
        throw new RangeError(`cost must be a whole number from 0 to ${greatestCost}`);
      }
      if (key.length > longestKey || !keyForm.test(key)) return verified(malformed, 'memory');
      const hash = hashOf(key);
      return fromMemory(question, hash, 'live') ?? ask(question, hash).catch(reportUnavailable);
    },
    isLive: () => stream.isAlive(performance.now()),
    async close() {
      isClosed = true;
      await reporting.close();
      await queue.flushReports();
      await stream.close();
    },
  };
}

/** Rejections that say nothing about other uses of the key. */
const aboutThisUse: ReadonlySet<Verdict['code']> = new Set([
  'ip_not_allowed',
  'insufficient_permission',
  'insufficient_scope',
]);

function hasScopes({ scopes }: Verdict, question: Question): boolean {
  return question.scopes?.every((scope) => scopes?.includes(scope)) !== false;
}

function textOf(cause: unknown): string {
  return cause instanceof Error ? cause.message : String(cause);
}

function entryOf(question: Question): BatchEntry {
  const { key, permission, scopes, cost = 1 } = question;
  const ip = addressOf(question);
  return { key, permission, cost, ...(ip === undefined ? {} : { ip }), ...(scopes && { scopes: [...scopes] }) };
}

/** @throws CostExceedsLimit, or LatchkeyUnavailable for an entry that could not be verified */
function verdictIn(answer: EntryAnswer): Verdict {
  if (isVerdict(answer)) return answer;
  if (answer.code === 'cost_exceeds_limit') throw new CostExceedsLimit(answer.detail);
  throw new LatchkeyUnavailable(`Latchkey could not verify the key (${answer.status}): ${answer.detail}`);
}
