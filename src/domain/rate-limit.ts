/** A number of requests per fixed window. */
export interface RateLimit {
  /** 1 to 1,000,000,000 */
  requests: number;
  /** 1 to 86,400 */
  windowSeconds: number;
}

/** The two columns of a row's own limit; null if it has none. */
export interface RateLimitColumns {
  rate_limit_requests: number | null;
  rate_limit_window_seconds: number | null;
}

export function toRateLimit(row: RateLimitColumns): RateLimit | null {
  if (row.rate_limit_requests === null || row.rate_limit_window_seconds === null) return null;
  return { requests: row.rate_limit_requests, windowSeconds: row.rate_limit_window_seconds };
}

export function toRateLimitColumns(limit: RateLimit | null): RateLimitColumns {
  return { rate_limit_requests: limit?.requests ?? null, rate_limit_window_seconds: limit?.windowSeconds ?? null };
}

/** Describes a limit, for problems. */
export function limitSentence(limit: { policy: 'owner' | 'key'; limit: number; windowSeconds: number }): string {
  const numbers = `is ${limit.limit} in ${limit.windowSeconds} seconds`;
  return limit.policy === 'owner'
    ? `The limit that all keys of the key's owner share ${numbers}. A key's own limit cannot raise it.`
    : `The key's own limit, which applies in addition to its owner's, ${numbers}.`;
}

/** The state of a limit after a request. */
interface LimitState {
  policy: string;
  limit: number;
  windowSeconds: number;
  remaining: number;
  resetSeconds: number;
}

/** The headers of draft-ietf-httpapi-ratelimit-headers, as structured fields (RFC 9651). Null: none. */
export function rateLimitFields(state: LimitState | null): Record<string, string> {
  if (state === null) return {};
  const { policy, limit, windowSeconds, remaining, resetSeconds } = state;
  return {
    'ratelimit-policy': `"${policy}";q=${limit};w=${windowSeconds}`,
    ratelimit: `"${policy}";r=${remaining};t=${resetSeconds}`,
  };
}
