import type { Access } from '../core/permissions.ts';
import { createAnswers, toVerdict } from './answers.ts';
import type { ClientOptions } from './options.ts';
import { permissionFor, type Question, type Verdict } from './verdict.ts';

export type { ClientOptions } from './options.ts';
export {
  CostExceedsLimit,
  LatchkeyUnavailable,
  permissionFor,
  type Question,
  type RateLimitState,
  type Verdict,
} from './verdict.ts';
export type { Access };

export interface LatchkeyClient {
  /**
   * Whether a key is good, and may do this: at once where it is known, else as a promise.
   * @throws LatchkeyUnavailable, CostExceedsLimit, at once or by the promise
   */
  verify(question: Question): Verdict | Promise<Verdict>;
  /** The same for a method of HTTP: GET, HEAD and OPTIONS read, all others write. */
  authorize(request: { key: string; method: string; ip?: string; cost?: number }): Verdict | Promise<Verdict>;
  /** Whether answers may come from memory: the stream of changes is alive. */
  isLive(): boolean;
  /** Tells Latchkey what it was not told yet, and ends the connections. */
  close(): Promise<void>;
}

/**
 * Asks Latchkey whether keys are good, and answers from memory where that is sure to be right.
 * @throws Error for options that cannot be meant
 */
export function createLatchkeyClient(options: ClientOptions): LatchkeyClient {
  const { find, isLive, close } = createAnswers(options);
  const verify = (question: Question) => toVerdict(find(question));
  return {
    verify,
    authorize: ({ method, ...request }) => verify({ ...request, permission: permissionFor(method) }),
    isLive,
    close,
  };
}
