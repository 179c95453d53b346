import { createPublicKey, type JsonWebKey } from 'node:crypto';
import type { FastifyBaseLogger } from 'fastify';
import { createRemoteJWKSet, customFetch, type JSONWebKeySet, type JWTVerifyGetKey } from 'jose';
import { Problem } from '../domain/errors.ts';
import { isLoopback } from '../lib/config-forms.ts';
import { dayMs, minuteMs } from '../lib/durations.ts';
import { fetchJson } from '../lib/fetch-json.ts';
import { createRemoteSource, type KeyTimings } from '../lib/remote-source.ts';

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
  timings?: Partial<KeyTimings>;
}

const defaultTimings: KeyTimings = {
  refreshMs: 10 * minuteMs,
  keptMs: dayMs,
  cooldownMs: 30_000,
  retryMs: 1_000,
  timeoutMs: 3_000,
};

/** Starts to fetch at once, so that the first caller does not wait. */
export function createIssuerKeys({ issuer, logger, timings }: IssuerKeysOptions): IssuerKeys {
  const { refreshMs, keptMs, cooldownMs, retryMs, timeoutMs } = { ...defaultTimings, ...timings };
  const source = createRemoteSource({
    load: (signal) => fetchKeys(issuer, signal),
    retryMs,
    onFailure: (err) =>
      logger.warn({ err, issuer }, "The identity provider's keys cannot be fetched. Cached keys stay valid."),
    onRecovery: () => logger.info("The identity provider's keys can be fetched again."),
  });

  /** Fetches for jose, one at a time. @throws Problem `unavailable` */
  async function fetchKeySet(_: string, { signal }: { signal: AbortSignal }): Promise<Response> {
    try {
      return Response.json(await source.fetch(signal));
    } catch (cause) {
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
      if (source.ageMs() >= refreshMs) refresh();
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
