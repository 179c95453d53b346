import { LRUCache } from 'lru-cache';
import { startPeriodicTask } from '../lib/periodic-task.ts';
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
import { type BatchEntry, CallFailed, type EntryAnswer, type Service } from './service.ts';
import { addressOf, CostExceedsLimit, LatchkeyUnavailable, malformed, type Question, type Verdict } from './verdict.ts';
import { createVerifyQueue, type Report } from './verify-queue.ts';

export interface Verifier {
  /**
   * At once where the key is known, and otherwise by a promise.
   * @throws LatchkeyUnavailable, CostExceedsLimit, at once or by the promise
   */
  verify(question: Question): Verdict | Promise<Verdict>;
  /** Whether answers may come from memory: the stream of changes is alive. */
  isLive(): boolean;
  /** Reports the uses that are not reported yet, and ends the stream. */
  close(): Promise<void>;
}

export interface VerifierOptions {
  service: Service;
  cacheMs: number;
  /** Keys kept in memory at most. */
  cacheSize: number;
  reportEveryMs: number;
  onTurn: (isLive: boolean, cause?: unknown) => void;
  onTrouble: (error: Error) => void;
}

/** A question that is on its way. */
interface Lookup {
  verdict: Promise<Verdict>;
  /** Ids that were changed meanwhile: the answer may be from before. */
  changed: Set<string>;
  mustNotBeKept: boolean;
}

/**
 * The form of a key. Anything else is refused here: otherwise a client could send so much of it that no request to
 * Latchkey would have room for the questions of others.
 */
const keyForm = /^\w+$/;
const longestKey = 200;
const greatestCost = 1_000;

/** The same trouble is reported again after this. */
const troubleEveryMs = 60_000;
const troublesRemembered = 50;

/** Asks Latchkey whether keys are good, and answers from memory where that is sure to be right. */
export function createVerifier({ service, cacheMs, cacheSize, reportEveryMs, ...options }: VerifierOptions): Verifier {
  const known = new KnownKeys(cacheSize);
  const unreported = new Unreported(known);
  /** By what they ask, for those that ask the same. */
  const shared = new Map<string, Lookup>();
  const running = new Set<Lookup>();
  const troubles = new LRUCache<string, true>({ max: troublesRemembered, ttl: troubleEveryMs });
  /** Of the last call; undefined where it was answered. */
  let failure: CallFailed | undefined;
  let probe: Promise<void> | undefined;
  let isClosed = false;

  const queue = createVerifyQueue({ service, takeReports, onCalled });
  const stream = followChanges({
    service,
    onChange(ids) {
      known.forgetDependents(ids);
      for (const lookup of running) for (const id of ids) lookup.changed.add(id);
      // A question from now on must not get an answer from before.
      shared.clear();
    },
    onReset() {
      known.clear();
      for (const lookup of running) lookup.mustNotBeKept = true;
      shared.clear();
    },
    onTurn: options.onTurn,
    onTrouble,
  });
  const reporting = startPeriodicTask({ run: () => queue.flushReports(), everyMs: reportEveryMs });

  function onTrouble(error: Error): void {
    if (troubles.has(error.message)) return;
    troubles.set(error.message, true);
    options.onTrouble(error);
  }

  function onCalled(failed: CallFailed | undefined): void {
    failure = failed;
    if (failure === undefined) return;
    onTrouble(failure);
    // A backend whose own token is rejected must not let others in either.
    if (failure.why === 'refused') known.clear();
  }

  function takeReports(most: number): Report[] {
    return unreported.take(most, performance.now()).map((uses) => ({
      entry: uses.entry,
      answered(answer, sentAtMs) {
        // Uses that could not be counted now are reported again; an entry that is rejected would be rejected for ever.
        if ('status' in answer && answer.status >= 500) {
          unreported.putBack(uses);
          return;
        }
        unreported.settle(uses);
        if ('valid' in answer) confirm(uses, answer, sentAtMs);
      },
      failed({ why }) {
        if (why === 'broken') unreported.abandon(uses);
        else unreported.putBack(uses);
      },
    }));
  }

  /** The replica that answered may not know of a change yet, so its answer confirms and removes, and adds nothing. */
  function confirm({ key, grant }: Pick<UnreportedUses, 'key' | 'grant'>, verdict: Verdict, sentAtMs: number): void {
    learnLimit(key, verdict.rateLimit, performance.now());
    if (!known.has(key)) return;
    if (!verdict.valid && verdict.code !== 'rate_limited') known.forget(key.hash);
    else if (key.grants.has(grant)) key.grants.set(grant, sentAtMs);
  }

  /** By what the key was good not long ago, as far as this question goes. */
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
    // Latchkey gives whole seconds, rounded up: a second less is sure to be within the window.
    key.refused = { cost, untilMs: nowMs + Math.min(1_000, (rateLimit.resetSeconds - 1) * 1_000) };
  }

  /** @param way `stale`: Latchkey cannot be asked */
  function fromMemory(question: Question, hash: string, way: 'live' | 'stale'): Verdict | undefined {
    const key = known.get(hash);
    const nowMs = performance.now();
    if (key === undefined || (way === 'live' && !stream.isAlive(nowMs))) return undefined;
    const grant = grantOf(key, question, nowMs);
    if (grant === undefined) return undefined;
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
        throw new CostExceedsLimit(`A use of cost ${cost} fits into no window of the API key's limits.`);
      }
      if (!(ownerLimit.hasRest(cost, nowMs) && keyLimit.hasRest(cost, nowMs))) return rateLimited();
    }
    if (cost > 0) unreported.add(key, grant, question, cost, nowMs);
    return { ...key.facts, rateLimit: limitOf(key, nowMs) };
  }

  async function ask(question: Question, hash: string): Promise<Verdict> {
    if (failure !== undefined) return askWhileFailing(question, hash);
    const name = `${hash} ${question.permission} ${addressOf(question) ?? ''}`;
    // A known key is asked about for its limit, and that is each use's own question.
    const mayShare = known.get(hash) === undefined && stream.isAlive(performance.now());
    const same = mayShare ? shared.get(name) : undefined;
    if (same !== undefined) {
      // The other question's cost was too high; this one is asked for itself.
      const verdict = await same.verdict.catch((error: unknown) =>
        error instanceof CostExceedsLimit ? undefined : staleOr(error, question, hash),
      );
      if (verdict !== undefined && !verdict.valid && verdict.code !== 'rate_limited') return verdict;
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
    return lookup.verdict.catch((error: unknown) => staleOr(error, question, hash));
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
      // Good as far as is known; this is about its limit.
      const verdict = verdictIn(await queue.ask(entry, false));
      confirm({ key, grant }, verdict, askedAtMs);
      noteRefusal(key, question, verdict, performance.now());
      return verdict;
    }
    // An answer that is kept is read from the database: the replica that answers may not know yet of a change that this
    // stream has brought already.
    const verdict = verdictIn(await queue.ask(entry, isAlive && cacheMs > 0));
    if (lookup.mustNotBeKept || idsOf(verdict).some((id) => lookup.changed.has(id))) return verdict;
    if (verdict.valid || verdict.code === 'rate_limited') {
      const nowMs = performance.now();
      const learned = known.learn(hash, question, verdict, askedAtMs);
      learnLimit(learned, verdict.rateLimit, nowMs);
      noteRefusal(learned, question, verdict, nowMs);
    } else if (verdict.code !== 'ip_not_allowed' && verdict.code !== 'insufficient_permission') {
      known.forget(hash);
    }
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

  /** After a failed call one probe at a time asks Latchkey, and only questions about unknown keys wait for it. */
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

  return {
    verify(question) {
      if (isClosed) throw new LatchkeyUnavailable('The client is closed.');
      const { key, cost = 1 } = question;
      if (!Number.isInteger(cost) || cost < 0 || cost > greatestCost) {
        throw new RangeError(`cost must be a whole number from 0 to ${greatestCost}`);
      }
      if (key.length > longestKey || !keyForm.test(key)) return malformed;
      const hash = hashOf(key);
      return fromMemory(question, hash, 'live') ?? ask(question, hash);
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

function entryOf(question: Question): BatchEntry {
  const { key, permission, cost = 1 } = question;
  const ip = addressOf(question);
  return { key, permission, cost, ...(ip === undefined ? {} : { ip }) };
}

/** @throws CostExceedsLimit, and LatchkeyUnavailable for an entry that could not be answered */
function verdictIn(answer: EntryAnswer): Verdict {
  if ('valid' in answer) return answer;
  if (answer.code === 'cost_exceeds_limit') throw new CostExceedsLimit(answer.detail);
  throw new LatchkeyUnavailable(`Latchkey could not answer (${answer.status}): ${answer.detail}`);
}
