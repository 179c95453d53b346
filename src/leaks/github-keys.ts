import { createPublicKey, type KeyObject } from 'node:crypto';
import type { FastifyBaseLogger } from 'fastify';
import { Problem } from '../domain/errors.ts';
import { dayMs, hourMs, minuteMs, secondMs } from '../lib/durations.ts';
import { fetchJson } from '../lib/fetch-json.ts';
import { singleFlight } from '../lib/single-flight.ts';

/** The public keys with which GitHub signs its reports. While GitHub does not respond, fetched keys stay valid. */
export interface GithubKeys {
  /**
   * @returns undefined if GitHub does not list the key
   * @throws Problem `unavailable` if the list cannot be fetched
   */
  find(identifier: string): Promise<KeyObject | undefined>;
}

export interface GithubKeysOptions {
  url: string;
  logger: Pick<FastifyBaseLogger, 'warn' | 'info'>;
  timings?: Partial<Timings>;
}

interface Timings {
  /** Keys older than this are fetched again; meanwhile they stay valid. */
  refreshMs: number;
  /** Keys older than this are not trusted any more: one may have been withdrawn. */
  keptMs: number;
  /**
   * An unknown key causes another fetch, but not sooner than this after the last one: anybody can name unknown keys, and
   * GitHub allows 60 fetches an hour.
   */
  cooldownMs: number;
  /** The pause after a failed fetch. */
  retryMs: number;
  timeoutMs: number;
}

const defaultTimings: Timings = {
  refreshMs: hourMs,
  keptMs: dayMs,
  cooldownMs: 5 * minuteMs,
  retryMs: 10 * secondMs,
  timeoutMs: 3 * secondMs,
};

/** Starts to fetch at once, so that the first report does not wait. */
export function createGithubKeys({ url, logger, timings }: GithubKeysOptions): GithubKeys {
  const { refreshMs, keptMs, cooldownMs, retryMs, timeoutMs } = { ...defaultTimings, ...timings };
  let keys = new Map<string, KeyObject>();
  let fetchedAtMs = Number.NEGATIVE_INFINITY;
  let failure: { cause: unknown; atMs: number } | undefined;
  const sinceMs = (atMs: number) => performance.now() - atMs;

  const fetchShared = singleFlight(async () => {
    if (failure !== undefined && sinceMs(failure.atMs) < retryMs) return;
    try {
      keys = await fetchKeys(url, AbortSignal.timeout(timeoutMs));
      fetchedAtMs = performance.now();
      if (failure !== undefined) logger.info("GitHub's public keys can be fetched again.");
      failure = undefined;
    } catch (cause) {
      if (failure === undefined) {
        logger.warn({ err: cause, url }, "GitHub's public keys cannot be fetched. Fetched keys stay valid for a day.");
      }
      failure = { cause, atMs: performance.now() };
    }
  });

  void fetchShared();
  return {
    async find(identifier) {
      if (sinceMs(fetchedAtMs) >= refreshMs) void fetchShared();
      const known = sinceMs(fetchedAtMs) < keptMs ? keys.get(identifier) : undefined;
      if (known !== undefined || sinceMs(fetchedAtMs) < cooldownMs) return known;
      await fetchShared();
      if (failure !== undefined) throw unavailable(failure.cause);
      return keys.get(identifier);
    },
  };
}

function unavailable(cause: unknown): Problem {
  const detail = "GitHub's public keys could not be fetched, so this signature cannot be checked.";
  return new Problem('unavailable', detail, { cause });
}

async function fetchKeys(url: string, signal: AbortSignal): Promise<Map<string, KeyObject>> {
  const { public_keys: listed } = await fetchJson(url, signal);
  if (!Array.isArray(listed)) throw new Error(`${url} has no list public_keys`);
  const keys = new Map<string, KeyObject>();
  for (const { key_identifier: identifier, key } of listed.filter((entry) => entry instanceof Object)) {
    const publicKey = usableKey(key);
    if (typeof identifier === 'string' && publicKey !== undefined) keys.set(identifier, publicKey);
  }
  if (keys.size === 0) throw new Error(`${url} has no usable key`);
  return keys;
}

/** Undefined unless it is a public key of ECDSA P-256, the only algorithm of this protocol. */
function usableKey(pem: unknown): KeyObject | undefined {
  if (typeof pem !== 'string' || !pem.includes('BEGIN PUBLIC KEY')) return undefined;
  try {
    const key = createPublicKey(pem);
    return key.asymmetricKeyDetails?.namedCurve === 'prime256v1' ? key : undefined;
  } catch {
    return undefined;
  }
}
