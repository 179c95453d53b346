import { permissionFor } from '../../../src/domain/permissions.ts';
import type { ClientEvent, Question, Verdict } from './verdict.ts';
import { createVerifier, type Verifier } from './verifier.ts';

export {
  type Access,
  type ClientEvent,
  CostExceedsLimit,
  LatchkeyUnavailable,
  type Question,
  type RateLimitState,
  type Verdict,
} from './verdict.ts';
export { permissionFor };

export interface ClientOptions {
  /** The URL of Latchkey, such as `https://latchkey.internal:8080`. */
  url: string;
  /** The access token of a verifier with the scope read. */
  token: string;
  /** How long a valid answer may be cached, in seconds. Default: 30; 0: not at all. */
  cacheSeconds?: number;
  /** The maximum number of cached keys. Default: 10,000. */
  cacheSize?: number;
  /** How long one call may take, in milliseconds. Default: 2,000. */
  timeoutMs?: number;
  /** How often locally allowed uses are reported to Latchkey, in milliseconds. Default: 250. */
  reportEveryMs?: number;
  /** Called with each event, for logs and metrics. It must be quick, and must not throw. Default: prints `trouble`. */
  onEvent?: (event: ClientEvent) => void;
}

export interface LatchkeyClient extends Verifier {
  /** The same as `verify`, with the permission of an HTTP method: GET, HEAD and OPTIONS read, all others write. */
  authorize(request: Omit<Question, 'permission'> & { method: string }): Verdict | Promise<Verdict>;
}

const mostKeys = 10_000_000;
/** The longest delay of a Node timer. */
const longestMs = 2_147_483_647;

/**
 * Verifies keys with Latchkey, and from memory while changes are followed.
 * @throws Error for invalid options, which would otherwise fail only with the first request
 */
export function createLatchkeyClient(options: ClientOptions): LatchkeyClient {
  const { url, token, cacheSeconds = 30, cacheSize = 10_000, timeoutMs = 2_000, reportEveryMs = 250 } = options;
  if (!(cacheSeconds >= 0)) throw new RangeError(`cacheSeconds must be 0 or more, but is ${cacheSeconds}`);
  requireWhole('cacheSize', cacheSize, mostKeys);
  requireWhole('timeoutMs', timeoutMs, longestMs);
  requireWhole('reportEveryMs', reportEveryMs, longestMs);
  const verifier = createVerifier({
    service: { url: baseOf(url), token: requireToken(token), timeoutMs },
    cacheMs: cacheSeconds * 1_000,
    cacheSize,
    reportEveryMs,
    onEvent: options.onEvent ?? printTrouble,
  });
  return {
    ...verifier,
    authorize({ method, ...request }) {
      const question: Question = { ...request, permission: permissionFor(method) };
      return verifier.verify(question);
    },
  };
}

/** Otherwise a wrong `url` or `token` would only show as 503. */
function printTrouble(event: ClientEvent): void {
  if (event.type === 'trouble') console.error(`API keys cannot be verified with Latchkey: ${event.reason}`);
}

function requireWhole(name: string, value: number, most: number): void {
  if (Number.isInteger(value) && value >= 1 && value <= most) return;
  throw new RangeError(`${name} must be a whole number from 1 to ${most}, but is ${value}`);
}

/** An environment variable that is not set is the usual mistake; it would make every request a 503. */
function requireToken(token: string): string {
  if (typeof token === 'string' && /^[\x21-\x7e]+$/.test(token)) return token;
  throw new Error(
    'token must be the access token of a verifier with the scope read, but is not set or has another form',
  );
}

function baseOf(url: string): string {
  const { protocol, origin, pathname, username, password, search, hash } = new URL(URL.canParse(url) ? url : 'none:');
  if ((protocol !== 'http:' && protocol !== 'https:') || username + password + search + hash !== '') {
    throw new Error('url must be like https://latchkey.internal:8080');
  }
  return origin + pathname.replace(/\/+$/, '');
}
