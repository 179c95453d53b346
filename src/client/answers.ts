import { performance } from 'node:perf_hooks';
import { createAsker, type Report } from './asker.ts';
import { followChanges } from './change-stream.ts';
import { createKnownKeys, grantName, hashOf, idsOf, KnownKey, learnLimit } from './known-keys.ts';
import { limitOf, malformed, verdictOf } from './local-verdict.ts';
import { type ClientOptions, settingsOf } from './options.ts';
import { CallFailed, type EntryAnswer } from './service-call.ts';
import { createTroubleReport } from './trouble.ts';
import { createUnreported } from './unreported.ts';
import {
  addressOf,
  CostExceedsLimit,
  LatchkeyUnavailable,
  type Question,
  type RateLimitState,
  type Verdict,
} from './verdict.ts';

/** What is known here of keys, and asked of Latchkey where that is not enough. */
export interface Answers {
  /**
   * Whether a key is good, and may do this: the key itself at once where it is known here to be so, and otherwise a verdict, at
   * once or as a promise.
   * @param likely the key that it probably is: where it is, its hash need not be made
   * @throws LatchkeyUnavailable, CostExceedsLimit, at once or by the promise
   */
  find(question: Question, likely?: KnownKey): KnownKey | Verdict | Promise<Verdict>;
  /** Whether answers may come from memory: the stream of changes is alive. */
  isLive(): boolean;
  /** Tells Latchkey what it was not told yet, and ends the connections. */
  close(): Promise<void>;
}

/** What is told of it, where a key was let in here. */
export function toVerdict<Answer>(answer: KnownKey | Answer): Verdict | Answer {
  return answer instanceof KnownKey ? verdictOf(answer.facts, rateLimitOfKnown(answer)) : answer;
}

/** Of both limits the one with the least left, with this use counted. */
export function rateLimitOfKnown(key: KnownKey): RateLimitState | null {
  return limitOf(key, performance.now());
}

/** One question that is on its way. */
interface Flight {
  verdict: Promise<Verdict>;
  /** What was changed meanwhile: the answer may be from before. */
  changed: Set<string>;
  mustNotBeKept: boolean;
}

/**
 * What a key may look like. Anything else is refused here: whoever wants to could send so much of it that no request to
 * Latchkey would have room for the questions of others.
 */
const keyForm = /^\w+$/;
const longestKey = 200;
const greatestCost = 1_000;

/**
 * Asks Latchkey whether keys are good, and answers from memory where that is sure to be right.
 * @throws Error for options that cannot be meant
 */
export function createAnswers(options: ClientOptions): Answers {
  const { service, cacheMs, cacheSize, reportEveryMs, onTurn, onTrouble } = settingsOf(options);
  const report = createTroubleReport(onTrouble);
  const known = createKnownKeys(cacheSize);
  const unreported = createUnreported(known);
  const flights = new Map<string, Flight>();
  const inTheAir = new Set<Flight>();
  /** Of the last call; undefined where it was answered. */
  let failure: CallFailed | undefined;
  let probe: Promise<void> | undefined;
  let isClosed = false;

  const asker = createAsker({ service, takeReports, onCalled });
  const stream = followChanges({
    service,
    forgetful: {
      forget(ids) {
        known.forgetDependents(ids);
        for (const flight of inTheAir) for (const id of ids) flight.changed.add(id);
        // Whoever comes now must not be told what was true before.
        flights.clear();
      },
      forgetAll() {
        known.clear();
        for (const flight of inTheAir) flight.mustNotBeKept = true;
        flights.clear();
      },
    },
    onTurn,
    onTrouble: report,
  });
  const timer = setInterval(() => {
    if (unreported.size > 0) void asker.report();
  }, reportEveryMs).unref();

  function onCalled(failed: CallFailed | undefined): void {
    failure = failed;
    if (failure !== undefined) report(failure);
    // Who is not let in to ask must not let others in either.
    if (failure?.why === 'refused') known.clear();
  }

  function takeReports(most: number): Report[] {
    return unreported.take(most, performance.now()).map((use) => ({
      entry: use.entry,
      answered(answer, sentAtMs) {
        // What could not be counted now is told again; what is not taken would be told for ever.
        if ('status' in answer && answer.status >= 500) {
          unreported.putBack(use);
          return;
        }
        unreported.settle(use);
        if ('valid' in answer) hearOf(use.of, use.grant, answer, sentAtMs);
      },
      failed(failure) {
        if (failure.why === 'broken') unreported.settle(use, 'perhaps counted');
        else unreported.putBack(use);
      },
    }));
  }

  /** The answer may be of a replica that has not heard of a change yet, so it takes away and confirms, but teaches nothing. */
  function hearOf(key: KnownKey, grant: string, verdict: Verdict, sentAtMs: number): void {
    learnLimit(key, verdict.rateLimit, performance.now());
    if (!known.has(key)) return;
    if (!verdict.valid && verdict.code !== 'rate_limited') known.forget(key.id);
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
    // Latchkey tells whole seconds, rounded up: a second less is sure to lie within the window.
    key.refused = { cost, untilMs: nowMs + Math.min(1_000, (rateLimit.resetSeconds - 1) * 1_000) };
  }

  /** @param way `stale`: Latchkey cannot be asked */
  function fromMemory(
    question: Question,
    key: KnownKey | undefined,
    way: 'live' | 'stale',
  ): KnownKey | Verdict | undefined {
    if (key === undefined) return undefined;
    const nowMs = performance.now();
    if (way === 'live' && !stream.isAlive(nowMs)) return undefined;
    const grant = grantOf(key, question, nowMs);
    if (grant === undefined) return undefined;
    if (hasExpired(key, nowMs)) {
      return way === 'live' ? undefined : { ...key.facts, valid: false, code: 'expired', rateLimit: null };
    }
    const { cost = 1 } = question;
    if (cost > 0 && key.refused !== undefined && nowMs < key.refused.untilMs && cost >= key.refused.cost) {
      return { ...key.facts, valid: false, code: 'rate_limited', rateLimit: limitOf(key, nowMs) };
    }
    const { ownerLimit, keyLimit } = key;
    if (way === 'stale' && !(ownerLimit.mayFit(cost) && keyLimit.mayFit(cost))) {
      throw new CostExceedsLimit(`A use of cost ${cost} fits into no window of the API key's limits.`);
    }
    if (way === 'live') {
      if (cost > 0 && !(ownerLimit.hasCredit(cost, nowMs) && keyLimit.hasCredit(cost, nowMs))) return undefined;
    } else if (!(ownerLimit.hasRest(cost, nowMs) && keyLimit.hasRest(cost, nowMs))) {
      return { ...key.facts, valid: false, code: 'rate_limited', rateLimit: limitOf(key, nowMs) };
    }
    if (cost > 0) unreported.add(key, grant, question, cost, nowMs);
    return key;
  }

  async function ask(question: Question, hash: string): Promise<Verdict> {
    if (failure !== undefined) return askWhileFailing(question, hash);
    const name = `${hash} ${question.permission} ${addressOf(question) ?? ''}`;
    // Who is known is asked about for its limit, and that is each use's own question.
    const mayShare = known.get(hash) === undefined && stream.isAlive(performance.now());
    const shared = mayShare ? flights.get(name) : undefined;
    if (shared !== undefined) {
      // Whose cost was too high is not known here, so this question is asked for itself.
      const verdict = await shared.verdict.catch((error: unknown) =>
        error instanceof CostExceedsLimit ? undefined : staleOr(error, question, hash),
      );
      if (verdict !== undefined && !verdict.valid && verdict.code !== 'rate_limited') return verdict;
      const own = fromMemory(question, known.get(hash), 'live');
      if (own !== undefined) return toVerdict(own);
    }
    const flight: Flight = { verdict: Promise.resolve(malformed), changed: new Set(), mustNotBeKept: false };
    flight.verdict = fly(flight, question, hash).finally(() => {
      inTheAir.delete(flight);
      if (flights.get(name) === flight) flights.delete(name);
    });
    inTheAir.add(flight);
    flights.set(name, flight);
    return flight.verdict.catch((error: unknown) => staleOr(error, question, hash));
  }

  /** @throws CallFailed, LatchkeyUnavailable */
  async function fly(flight: Flight, question: Question, hash: string): Promise<Verdict> {
    const { key, permission, cost = 1 } = question;
    const ip = addressOf(question);
    const askedAtMs = performance.now();
    const entry = { key, permission, cost, ...(ip === undefined ? {} : { ip }) };
    const isAlive = stream.isAlive(askedAtMs);
    const before = known.get(hash);
    const isGood = isAlive && before !== undefined && !hasExpired(before, askedAtMs);
    const grant = isGood ? grantOf(before, question, askedAtMs) : undefined;
    if (before !== undefined && grant !== undefined) {
      // Good as far as is known; this is about its limit.
      const verdict = verdictIn(await asker.ask(entry, false));
      hearOf(before, grant, verdict, askedAtMs);
      noteRefusal(before, question, verdict, performance.now());
      return verdict;
    }
    // What is to be kept is read afresh: the replica that answers may not have heard yet of a change that this stream has told
    // of already.
    const verdict = verdictIn(await asker.ask(entry, isAlive && cacheMs > 0));
    const mayBeKept = !flight.mustNotBeKept && !idsOf(verdict).some((id) => flight.changed.has(id));
    if (!mayBeKept) return verdict;
    if (verdict.valid || verdict.code === 'rate_limited') learn(question, hash, verdict, askedAtMs);
    else if (verdict.code !== 'ip_not_allowed' && verdict.code !== 'insufficient_permission') known.forget(hash);
    return verdict;
  }

  function learn(question: Question, hash: string, verdict: Verdict, askedAtMs: number): void {
    const nowMs = performance.now();
    const facts: Verdict = { ...verdict, valid: true, code: 'valid', rateLimit: null };
    const key = known.learn(hash, question, facts, askedAtMs);
    learnLimit(key, verdict.rateLimit, nowMs);
    noteRefusal(key, question, verdict, nowMs);
  }

  /** @throws LatchkeyUnavailable, CostExceedsLimit */
  function staleOr(error: unknown, question: Question, hash: string): Verdict {
    if (error instanceof CostExceedsLimit) throw error;
    const stale = fromMemory(question, known.get(hash), 'stale');
    if (stale !== undefined) return toVerdict(stale);
    if (error instanceof LatchkeyUnavailable) {
      report(error);
      throw error;
    }
    throw new LatchkeyUnavailable(error instanceof CallFailed ? error.message : String(error), { cause: error });
  }

  /** After one failed call nobody waits for Latchkey who need not, and one probe at a time asks it. */
  async function askWhileFailing(question: Question, hash: string): Promise<Verdict> {
    const { key, permission } = question;
    probe ??= asker
      .ask({ key, permission, cost: 0 }, false)
      .then(
        () => undefined,
        () => undefined,
      )
      .finally(() => {
        probe = undefined;
      });
    const stale = fromMemory(question, known.get(hash), 'stale');
    if (stale !== undefined) return toVerdict(stale);
    await probe;
    if (failure !== undefined) throw new LatchkeyUnavailable(failure.message, { cause: failure });
    return ask(question, hash);
  }

  function find(question: Question, likely?: KnownKey): KnownKey | Verdict | Promise<Verdict> {
    if (isClosed) throw new LatchkeyUnavailable('The client is closed.');
    const { cost = 1 } = question;
    if (!Number.isInteger(cost) || cost < 0 || cost > greatestCost) {
      throw new RangeError(`cost must be a whole number from 0 to ${greatestCost}`);
    }
    if (question.key.length > longestKey) return malformed;
    // Only while its text is here for its uses to be told.
    const again = likely?.waiting?.key === question.key ? fromMemory(question, known.again(likely), 'live') : undefined;
    if (again !== undefined) return again;
    const hash = hashOf(question.key);
    return (
      fromMemory(question, known.get(hash), 'live') ?? (keyForm.test(question.key) ? ask(question, hash) : malformed)
    );
  }

  return {
    find,
    isLive: () => stream.isAlive(performance.now()),
    async close() {
      isClosed = true;
      clearInterval(timer);
      await asker.close();
      await stream.close();
    },
  };
}

/** @throws CostExceedsLimit, and LatchkeyUnavailable for an entry that could not be answered */
function verdictIn(answer: EntryAnswer): Verdict {
  if ('valid' in answer) return answer;
  if (answer.code === 'cost_exceeds_limit') throw new CostExceedsLimit(answer.detail);
  throw new LatchkeyUnavailable(`Latchkey could not answer (${answer.status}): ${answer.detail}`);
}
