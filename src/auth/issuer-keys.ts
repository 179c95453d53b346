import { createPublicKey, type JsonWebKey } from 'node:crypto';
import type { FastifyBaseLogger } from 'fastify';
import { createLocalJWKSet, errors, type JSONWebKeySet, type JWTVerifyGetKey } from 'jose';
import { Problem } from '../core/errors.ts';
import { dayMs, minuteMs } from '../lib/durations.ts';
import { isLoopback } from './oidc-settings.ts';

/**
 * The keys that an identity provider signs with, found by OpenID Connect Discovery 1.0. They are kept: while the provider
 * does not answer, known ones go on.
 */
export interface IssuerKeys {
  /** The key that a token says it was signed with. @throws Problem `unavailable`; JOSEError where there is no such key */
  find: JWTVerifyGetKey;
}

export interface IssuerKeysOptions {
  issuer: string;
  logger: Pick<FastifyBaseLogger, 'warn' | 'info'>;
  timings?: Partial<Timings>;
}

interface Timings {
  /** Keys older than this are fetched again, while they go on being used. */
  refreshMs: number;
  /** Keys that could not be fetched again for so long are not trusted any more: one may have been withdrawn. */
  keptMs: number;
  /** An unknown key makes them be fetched again, at most this often: anybody can name one. */
  cooldownMs: number;
  /** After a failure the provider is left alone for so long. */
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

interface KnownKeys {
  find: ReturnType<typeof createLocalJWKSet>;
  fetchedAtMs: number;
}

/** Begins to fetch at once, so that the first caller need not wait. */
export function createIssuerKeys({ issuer, logger, timings }: IssuerKeysOptions): IssuerKeys {
  const { refreshMs, keptMs, cooldownMs, retryMs, timeoutMs } = { ...defaultTimings, ...timings };
  let known: KnownKeys | undefined;
  let failure: { cause: unknown } | undefined;
  let triedAtMs = Number.NEGATIVE_INFINITY;
  let fetching: Promise<void> | undefined;

  /** One at a time, for everybody who waits. Never fails: what became of it is in `known` and `failure`. */
  function fetchAgain(): Promise<void> {
    fetching ??= fetchKeys(issuer, timeoutMs)
      .then(
        (jwks) => {
          known = { find: createLocalJWKSet(jwks), fetchedAtMs: performance.now() };
          if (failure !== undefined) logger.info("The identity provider's keys can be fetched again.");
          failure = undefined;
        },
        (cause: unknown) => {
          if (failure === undefined) {
            logger.warn({ err: cause, issuer }, "The identity provider's keys cannot be fetched; known ones go on.");
          }
          failure = { cause };
        },
      )
      .finally(() => {
        triedAtMs = performance.now();
        fetching = undefined;
      });
    return fetching;
  }

  const sinceMs = (atMs: number) => performance.now() - atMs;
  const mayTry = () => fetching !== undefined || sinceMs(triedAtMs) >= (failure === undefined ? cooldownMs : retryMs);

  async function knownKeys(): Promise<KnownKeys> {
    if (known === undefined || sinceMs(known.fetchedAtMs) >= keptMs) {
      if (mayTry()) await fetchAgain();
    } else if (sinceMs(known.fetchedAtMs) >= refreshMs && mayTry()) {
      void fetchAgain();
    }
    if (known === undefined || sinceMs(known.fetchedAtMs) >= keptMs) throw unavailable();
    return known;
  }

  function unavailable(): Problem {
    const detail =
      'The keys of the identity provider could not be read, and without them this token cannot be checked.';
    return new Problem('unavailable', detail, { cause: failure?.cause });
  }

  void fetchAgain();
  return {
    async find(header, token) {
      const keys = await knownKeys();
      try {
        return await keys.find(header, token);
      } catch (error) {
        if (!(error instanceof errors.JWKSNoMatchingKey)) throw error;
        // Unless others have been fetched meanwhile, for somebody else.
        if (known === keys && mayTry()) await fetchAgain();
        // Then nobody can say whether this is a new key.
        if (failure !== undefined) throw unavailable();
        return (await knownKeys()).find(header, token);
      }
    },
  };
}

/**
 * The document at `/.well-known/openid-configuration` must be of this issuer (OpenID Connect Discovery 1.0, section 4.3).
 * @throws Error where the provider does not answer, or says something else than that
 */
export async function fetchKeys(issuer: string, timeoutMs = defaultTimings.timeoutMs): Promise<JSONWebKeySet> {
  const signal = AbortSignal.timeout(timeoutMs);
  const discovery = await fetchJson(`${issuer.replace(/\/$/, '')}/.well-known/openid-configuration`, signal);
  if (discovery['issuer'] !== issuer) throw new Error('the discovery document is that of another issuer');
  const jwksUri = discovery['jwks_uri'];
  if (typeof jwksUri !== 'string' || !isTrustworthy(jwksUri, issuer)) {
    throw new Error('the discovery document names no jwks_uri that can be trusted');
  }
  const jwks = await fetchJson(jwksUri, signal);
  if (!Array.isArray(jwks['keys'])) throw new Error('the key set has no keys');
  return { keys: jwks['keys'].filter(isUsable) };
}

const shortestModulusBits = 2_048;

/**
 * jose looks at a key only once a token names it, and then fails at one that is damaged or too weak as if the fault were
 * ours: anybody could get 500s by naming it. Secret and private ones are no business of a document that all can read.
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

const longestBytes = 262_144;

async function fetchJson(url: string, signal: AbortSignal): Promise<Record<string, unknown>> {
  const response = await fetch(url, { signal, redirect: 'error', headers: { accept: 'application/json' } });
  if (!response.ok) {
    await response.body?.cancel();
    throw new Error(`${url} answered ${response.status}`);
  }
  const value: unknown = JSON.parse(await textOf(response));
  if (typeof value !== 'object' || value === null) throw new Error(`${url} is no JSON object`);
  return value as Record<string, unknown>;
}

async function textOf(response: Response): Promise<string> {
  const chunks: Uint8Array[] = [];
  let bytes = 0;
  for await (const chunk of response.body ?? []) {
    bytes += chunk.length;
    if (bytes > longestBytes) throw new Error(`${response.url} is over ${longestBytes} bytes`);
    chunks.push(chunk);
  }
  return Buffer.concat(chunks).toString('utf8');
}
