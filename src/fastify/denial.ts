import type { FastifyReply, FastifyRequest } from 'fastify';
import type { RateLimitState, Verdict } from '../client/verdict.ts';
import type { Problem } from '../core/errors.ts';
import { limitSentence } from '../core/rate-limit.ts';

/** Why a request is not let in, and how it is answered unless the application has its own way. */
export interface Denial {
  status: number;
  /** `unauthorized`, `forbidden`, `rate_limited`, `unavailable` or `bad_request`. */
  code: string;
  /** For the client: what happened. */
  detail: string;
  headers: Record<string, string>;
  /** What Latchkey said of the key; undefined where it was not asked, or did not answer. Not for the client. */
  verdict: Verdict | undefined;
}

const challenge = (error: string, description: string) =>
  `Bearer realm="api", error="${error}", error_description="${description}"`;

const notAccepted = 'The API key is not accepted.';

export function denialOf(verdict: Verdict): Denial {
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
    case 'rate_limited': {
      const headers = {
        'retry-after': String(verdict.rateLimit?.resetSeconds ?? 1),
        ...rateLimitFields(verdict.rateLimit),
      };
      const which = verdict.rateLimit === null ? '' : ` ${limitSentence(verdict.rateLimit)}`;
      return by('rate_limited', 429, `The API key has been used too often.${which}`, headers);
    }
    default:
      // One answer for all of them, so that it does not tell which keys exist.
      return by('unauthorized', 401, notAccepted, { 'www-authenticate': challenge('invalid_token', notAccepted) });
  }
}

export function denialOfProblem(problem: Problem): Denial {
  const { status, code, detail } = problem;
  const sent = problem.headers['www-authenticate'];
  const headers: Record<string, string> =
    sent === undefined ? {} : { 'www-authenticate': sent.replace('realm="latchkey"', 'realm="api"') };
  return { status, code, detail, headers, verdict: undefined };
}

export function noKey(header: string | undefined): Denial {
  const how = header === undefined ? 'as Authorization: Bearer <key> or in X-API-Key' : `in ${header}`;
  const headers = { 'www-authenticate': 'Bearer realm="api"' };
  return { status: 401, code: 'unauthorized', detail: `Send an API key ${how}.`, headers, verdict: undefined };
}

/** No 429: however long the client waits, this request does not fit into a window. */
export const costsTooMuch: Denial = {
  status: 403,
  code: 'forbidden',
  detail: "This request costs more than the API key's limit lets through in a whole window.",
  headers: {},
  verdict: undefined,
};

export const unavailable: Denial = {
  status: 503,
  code: 'unavailable',
  detail: 'Whether the API key is good cannot be said now.',
  headers: { 'retry-after': '1' },
  verdict: undefined,
};

/** The fields of draft-ietf-httpapi-ratelimit-headers, as Latchkey itself sends them. */
export function rateLimitFields(state: RateLimitState | null): Record<string, string> {
  if (state === null) return {};
  const { policy, limit, windowSeconds, remaining, resetSeconds } = state;
  return {
    'ratelimit-policy': `"${policy}";q=${limit};w=${windowSeconds}`,
    ratelimit: `"${policy}";r=${remaining};t=${resetSeconds}`,
  };
}

const titles: Record<number, string> = {
  400: 'Bad Request',
  401: 'Unauthorized',
  403: 'Forbidden',
  429: 'Too Many Requests',
  503: 'Service Unavailable',
};

/** A problem document by RFC 9457. Its type is that of its status: nothing is served here that would explain another. */
export function sendProblem(request: FastifyRequest, reply: FastifyReply, { status, code, detail }: Denial): void {
  const title = titles[status];
  const body = { type: 'about:blank', title, status, detail, code, requestId: request.id };
  reply.header('content-type', 'application/problem+json; charset=utf-8').send(JSON.stringify(body));
}
