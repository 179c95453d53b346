import { type ProblemCode, problemCodes } from '../domain/errors.ts';
import { type HistoryAction, historyActions } from '../domain/events.ts';
import { createRequestTimes, type RequestTimes } from '../http/request-times.ts';
import { type LeakResult, leakResults } from '../leaks/policy.ts';
import { type CredentialRefusal, credentialRefusals } from '../refused-requests/watch.ts';
import { type VerdictCode, verdictCodes } from '../verification/policy.ts';
import { type AttemptOutcome, attemptOutcomes } from '../webhooks/policy.ts';

/** What the process counts while it runs. Each label is a word of a closed list. */
export interface Tallies {
  times: RequestTimes;
  problems: Record<ProblemCode, number>;
  /** Requests without a valid credential, by the code of their rejection. */
  refusedCredentials: Record<CredentialRefusal, number>;
  verdicts: Record<VerdictCode, number>;
  events: Record<HistoryAction, number>;
  leakReports: Record<LeakResult, number>;
  webhookAttempts: Record<AttemptOutcome, number>;
}

export function createTallies(): Tallies {
  return {
    times: createRequestTimes(),
    problems: zeros(problemCodes),
    refusedCredentials: zeros(credentialRefusals),
    verdicts: zeros(verdictCodes),
    events: zeros(historyActions),
    leakReports: zeros(leakResults),
    webhookAttempts: zeros(attemptOutcomes),
  };
}

/** Counts events. @param actions the actions of events that were just committed */
export function countEvents({ events }: Pick<Tallies, 'events'>, actions: readonly string[]): void {
  for (const action of actions as readonly HistoryAction[]) events[action] += 1;
}

function zeros<Word extends string>(words: readonly Word[]): Record<Word, number> {
  return Object.fromEntries(words.map((word) => [word, 0])) as Record<Word, number>;
}
