import { limitSentence, rateLimitFields } from '../../../src/domain/rate-limit.ts';
import { UnreadableCredential } from '../../../src/lib/read-credential.ts';
import { CostExceedsLimit, LatchkeyUnavailable, type Verdict } from './verdict.ts';

/** Why a request is rejected, and the default reply. */
export interface Denial {
  status: number;
  /** `unauthorized`, `forbidden`, `rate_limited`, `unavailable` or `bad_request`. */
  code: string;
  /** For the client: what happened. */
  detail: string;
  headers: Record<string, string>;
  /** Latchkey's verdict; undefined if there is none. Not for the client. */
  verdict: Verdict | undefined;
  /** Why Latchkey could not verify the key; undefined if it could. Not for the client. */
  reason?: string;
}

const challenge = (error: string, description: string) =>
  `Bearer realm="api", error="${error}", error_description="${description}"`;

const notAccepted = 'The API key is not accepted.';

/** @param scopes those that the request needs */
export function denialOf(verdict: Verdict, scopes: readonly string[] = []): Denial {
  const by = (code: string, status: number, detail: string, headers: Record<string, string>): Denial => {
    return { status, code, detail, headers, verdict };
  };
  switch (verdict.code) {
    case 'ip_not_allowed':
      return by('forbidden', 403, 'The API key is not accepted from this address.', {});
    case 'insufficient_permission': {
      const detail = 'The API key does not permit this.';
      return by('forbidden', 403, detail, { 'www-authenticate': challenge('insufficient_scope', detail) });
    }
    case 'insufficient_scope': {
      const detail = 'The API key lacks a scope that this request needs.';
      const header = `${challenge('insufficient_scope', detail)}, scope="${scopes.join(' ')}"`;
      return by('forbidden', 403, detail, { 'www-authenticate': header });
    }
    case 'rate_limited': {
      const headers = {
        'retry-after': String(verdict.rateLimit?.resetSeconds ?? 1),
        ...rateLimitFields(verdict.rateLimit),
      };
      const which = verdict.rateLimit === null ? '' : ` ${limitSentence(verdict.rateLimit)}`;
      return by('rate_limited', 429, `The API key has been used too often.${which}`, headers);
    }
    default:
      // The same reply for all of these, so that it does not reveal which keys exist.
      return by('unauthorized', 401, notAccepted, { 'www-authenticate': challenge('invalid_token', notAccepted) });
  }
}

function unasked(status: number, code: string, detail: string, headers: Record<string, string> = {}): Denial {
  return { status, code, detail, headers, verdict: undefined };
}

export function noKey(header: string | undefined): Denial {
  const how = header === undefined ? 'as Authorization: Bearer <key> or in X-API-Key' : `in ${header}`;
  return unasked(401, 'unauthorized', `Send an API key ${how}.`, { 'www-authenticate': 'Bearer realm="api"' });
}

export const keyInUrl = unasked(
  400,
  'bad_request',
  'An API key in the query string is rejected, because URLs end up in logs and histories. Send it in a header, and replace it.',
);

/** Not 429: waiting does not help. */
const costsTooMuch = unasked(
  403,
  'forbidden',
  "This request costs more than a whole window of the API key's limit allows.",
);

const unavailable = unasked(503, 'unavailable', 'The API key cannot be verified at the moment.', {
  'retry-after': '1',
});

/** Rethrows errors of the application. */
export function denialOfError(error: unknown): Denial {
  if (error instanceof LatchkeyUnavailable) return { ...unavailable, reason: error.message };
  if (error instanceof CostExceedsLimit) return costsTooMuch;
  if (!(error instanceof UnreadableCredential)) throw error;
  const { status, message } = error;
  if (status === 400) return unasked(status, 'bad_request', message);
  return unasked(status, 'unauthorized', message, { 'www-authenticate': challenge('invalid_request', message) });
}

const titles: Record<number, string> = {
  400: 'Bad Request',
  401: 'Unauthorized',
  403: 'Forbidden',
  429: 'Too Many Requests',
  503: 'Service Unavailable',
};

/** The headers of a rejection, except for its content type. */
export function problemHeaders({ headers }: Denial): Record<string, string> {
  return { 'cache-control': 'no-store', ...headers };
}

/**
 * A problem document (RFC 9457). Its type is that of its status, because the application serves no page about it.
 * @param requestId left out if the server has none
 */
export function problemOf({ status, code, detail }: Denial, requestId?: string): string {
  return JSON.stringify({ type: 'about:blank', title: titles[status], status, detail, code, requestId });
}
