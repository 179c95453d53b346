import { createPublicKey, type JsonWebKey } from 'node:crypto';
import type { FastifyBaseLogger } from 'fastify';
import { createRemoteJWKSet, customFetch, type JSONWebKeySet, type JWTVerifyGetKey } from 'jose';
import { Problem } from '../domain/errors.ts';
import { dayMs, minuteMs } from '../lib/durations.ts';
import { fetchJson } from '../lib/fetch-json.ts';
import { isLoopback } from './settings.ts';

/**
 * The signing keys of an identity provider, found by OpenID Connect Discovery 1.0 and cached by jose. While the
 * provider does not respond, cached keys stay valid.
 */
export interface IssuerKeys {
  /** The key that a token names. @throws Problem `unavailable`; JOSEError if there is no such key */
  find: JWTVerifyGetKey;
}

export interface IssuerKeysOptions {
  issuer: string;
  logger: Pick<FastifyBaseLogger, 'warn' | 'info'>;
  timings?: Partial<Timings>;
}

interface Timings {
  /** Keys older than this are fetched again; meanwhile they stay valid. */
  refreshMs: number;
  /** Keys older than this are not trusted any more: one may have been withdrawn. */
  keptMs: number;
  /**
   * An unknown key causes another fetch, but not sooner than this after the last one: anybody can name unknown keys.
   */
  cooldownMs: number;
  /** The pause after a failed fetch. */
  retryMs: number;
  timeoutMs: number;
}

const defaultTimings: Timings = {
  refreshMs: 10 * minuteMs,
  keptMs: dayMs,
  cooldownMs: 30_000,
  retryMs: 1_000,
  timeoutMs: 3_000,
};

/** Starts to fetch at once, so that the first caller does not wait. */
export function createIssuerKeys({ issuer, logger, timings }: IssuerKeysOptions): IssuerKeys {
  const { refreshMs, keptMs, cooldownMs, retryMs, timeoutMs } = { ...defaultTimings, ...timings };
  let failure: { cause: unknown; atMs: number } | undefined;
  let fetchedAtMs = Number.NEGATIVE_INFINITY;
  const sinceMs = (atMs: number) => performance.now() - atMs;

  /** Fetches for jose, one at a time. @throws Problem `unavailable` */
  async function fetchKeySet(_: string, { signal }: { signal: AbortSignal }): Promise<Response> {
    if (failure !== undefined && sinceMs(failure.atMs) < retryMs) throw unavailable(failure.cause);
    try {
      const keySet = await fetchKeys(issuer, signal);
      fetchedAtMs = performance.now();
      if (failure !== undefined) logger.info("The identity provider's keys can be fetched again.");
      failure = undefined;
      return Response.json(keySet);
    } catch (cause) {
      if (failure === undefined) {
        logger.warn({ err: cause, issuer }, "The identity provider's keys cannot be fetched. Cached keys stay valid.");
      }
      failure = { cause, atMs: performance.now() };
      throw unavailable(cause);
    }
  }

  const keys = createRemoteJWKSet(new URL(issuer), {
    [customFetch]: fetchKeySet,
    cacheMaxAge: keptMs,
    cooldownDuration: cooldownMs,
    timeoutDuration: timeoutMs,
  });
  const refresh = () => void keys.reload().catch(() => undefined);

  refresh();
  return {
    find(header, token) {
      if (sinceMs(fetchedAtMs) >= refreshMs) refresh();
      return keys(header, token);
    },
  };
}

function unavailable(cause: unknown): Problem {
  const detail = 'The keys of the identity provider could not be fetched, so this token cannot be checked.';
  return new Problem('unavailable', detail, { cause });
}

/**
 * Checks that the document at `/.well-known/openid-configuration` is that of the issuer (OpenID Connect Discovery 1.0,
 * section 4.3). @throws Error if the provider does not respond or returns another document
 */
export async function fetchKeys(
  issuer: string,
  signal = AbortSignal.timeout(defaultTimings.timeoutMs),
): Promise<JSONWebKeySet> {
  const discovery = await fetchJson(`${issuer.replace(/\/$/, '')}/.well-known/openid-configuration`, signal);
  if (discovery['issuer'] !== issuer) throw new Error('the discovery document is that of another issuer');
  const jwksUri = discovery['jwks_uri'];
  if (typeof jwksUri !== 'string' || !isTrustworthy(jwksUri, issuer)) {
    throw new Error('the discovery document has no trustworthy jwks_uri');
  }
  const jwks = await fetchJson(jwksUri, signal);
  if (!Array.isArray(jwks['keys'])) throw new Error('the key set has no keys');
  return { keys: jwks['keys'].filter(isUsable) };
}

const shortestModulusBits = 2_048;

/**
 * jose checks a key only when a token names it. A damaged or weak key would then cause a 500, which anybody could
 * provoke by naming it. Private and secret keys do not belong in this public document.
 */
function isUsable(jwk: JsonWebKey | null): boolean {
  try {
    if (jwk === null || jwk.d !== undefined) return false;
    const { asymmetricKeyDetails } = createPublicKey({ key: jwk, format: 'jwk' });
    return (asymmetricKeyDetails?.modulusLength ?? shortestModulusBits) >= shortestModulusBits;
  } catch {
    return false;
  }
}

function isTrustworthy(jwksUri: string, issuer: string): boolean {
  const url = URL.canParse(jwksUri) ? new URL(jwksUri) : undefined;
  if (url?.protocol === 'https:') return true;
  return url?.protocol === 'http:' && isLoopback(url.hostname) && issuer.startsWith('http:');
}
