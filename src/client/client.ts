import { permissionFor, type Question, type Verdict } from './verdict.ts';
import { createVerifier, type Verifier } from './verifier.ts';

export {
  type Access,
  CostExceedsLimit,
  LatchkeyUnavailable,
  permissionFor,
  type Question,
  type RateLimitState,
  type Verdict,
} from './verdict.ts';

export interface ClientOptions {
  /** Where Latchkey is, such as `https://latchkey.internal:8080`. */
  url: string;
  /** The access token of a verifier with the scope read. */
  token: string;
  /** How long a good answer may be used before Latchkey has to say it again. 30 by default; 0: not at all. */
  cacheSeconds?: number;
  /** Keys kept in memory at most, 10,000 by default. */
  cacheSize?: number;
  /** How long one call may take, 2,000 by default. */
  timeoutMs?: number;
  /** How often the uses that were allowed here are reported to Latchkey, 250 by default. */
  reportEveryMs?: number;
  /**
   * Called with what keeps Latchkey from being asked, such as a wrong url or token: at once, and then once a minute
   * while it lasts. The message is for a log.
   */
  onTrouble?: (error: Error) => void;
  /** Called when answers begin to come from memory, and when they cease to before the client is closed. */
  onTurn?: (isLive: boolean, cause?: unknown) => void;
}

export interface LatchkeyClient extends Verifier {
  /** The same as `verify` for a method of HTTP: GET, HEAD and OPTIONS read, all others write. */
  authorize(request: { key: string; method: string; ip?: string; cost?: number }): Verdict | Promise<Verdict>;
}

const mostKeys = 10_000_000;
/** The longest time that a timer of Node's can wait. */
const longestMs = 2_147_483_647;

/**
 * Asks Latchkey whether keys are good, and answers from memory where that is sure to be right.
 * @throws Error for options that cannot be meant, and would otherwise fail only when a request comes
 */
export function createLatchkeyClient(options: ClientOptions): LatchkeyClient {
  const { url, token, cacheSeconds = 30, cacheSize = 10_000, timeoutMs = 2_000, reportEveryMs = 250 } = options;
  if (!(cacheSeconds >= 0)) throw new RangeError(`cacheSeconds must be 0 or more, and is ${cacheSeconds}`);
  requireWhole('cacheSize', cacheSize, mostKeys);
  requireWhole('timeoutMs', timeoutMs, longestMs);
  requireWhole('reportEveryMs', reportEveryMs, longestMs);
  const verifier = createVerifier({
    service: { url: baseOf(url), token: requireToken(token), timeoutMs },
    cacheMs: cacheSeconds * 1_000,
    cacheSize,
    reportEveryMs,
    onTurn: options.onTurn ?? (() => undefined),
    onTrouble: options.onTrouble ?? (() => undefined),
  });
  return {
    ...verifier,
    authorize({ method, ...request }) {
      const question: Question = { ...request, permission: permissionFor(method) };
      return verifier.verify(question);
    },
  };
}

function requireWhole(name: string, value: number, most: number): void {
  if (Number.isInteger(value) && value >= 1 && value <= most) return;
  throw new RangeError(`${name} must be a whole number from 1 to ${most}, and is ${value}`);
}

/** A variable of the environment that is not set is the usual mistake, and every request would be a 503. */
function requireToken(token: string): string {
  if (typeof token === 'string' && /^[\x21-\x7e]+$/.test(token)) return token;
  throw new Error('token must be the access token of a verifier with the scope read, and is not set or is none');
}

function baseOf(url: string): string {
  const { protocol, origin, pathname, username, password, search, hash } = new URL(URL.canParse(url) ? url : 'none:');
  if ((protocol !== 'http:' && protocol !== 'https:') || username + password + search + hash !== '') {
    throw new Error('url must be like https://latchkey.internal:8080');
  }
  return origin + pathname.replace(/\/+$/, '');
}
