import type { IncomingHttpHeaders } from 'node:http';
import { andThen, type MaybePromise, withCatch } from '../../../src/lib/maybe-promise.ts';
import { readCredential } from '../../../src/lib/read-credential.ts';
import { type ClientOptions, createLatchkeyClient, type LatchkeyClient } from './client.ts';
import { type Denial, denialOf, denialOfError, keyInUrl, noKey } from './denial.ts';
import {
  type Access,
  LatchkeyUnavailable,
  type Permission,
  type Question,
  type RateLimitState,
  type Verdict,
} from './verdict.ts';

/** The key that allowed a request. It is frozen, because requests with the same key share its metadata. */
export interface ApiKey {
  /** `key_…` */
  readonly id: string;
  readonly organizationId: string;
  /** Null for the organization's own keys. */
  readonly partnerId: string | null;
  /** The partner's id in the organization's own system; null if it has none. */
  readonly partnerExternalId: string | null;
  readonly partnerEmail: string | null;
  readonly permission: Permission;
  readonly scopes: readonly string[];
  readonly name: string | null;
  /** The metadata that the organization stores with the key. */
  readonly metadata: Readonly<Record<string, unknown>>;
  readonly expiresAt: string | null;
}

export interface GateOptions extends ClientOptions {
  /** The header with the key, instead of `Authorization: Bearer …` and `X-API-Key`; for example `x-acme-key`. */
  header?: string;
}

/** The parts of an HTTP request that decide whether it may pass. */
export interface GateRequest {
  headers: IncomingHttpHeaders;
  /** Names and values in turns, as they arrived. */
  rawHeaders: readonly string[];
  /** With its query. */
  url?: string | undefined;
}

/** What a request needs. */
export interface GateNeeds {
  permission: Access;
  /** All of them must be on the key. */
  scopes?: readonly string[] | undefined;
  /** The client's address. */
  ip: string | undefined;
  /** How much the request counts. */
  cost: number;
}

/** A request with a good key. */
export interface Admission {
  apiKey: ApiKey;
  /** The limit with the least remaining. */
  rateLimit: RateLimitState | null;
}

/** Decides whether requests may pass: the part that all servers share. */
export interface Gate extends Pick<LatchkeyClient, 'isLive' | 'close'> {
  /** Answers at once for a cached key. Errors of the application, such as an impossible cost, are thrown. */
  check(request: GateRequest, needs: GateNeeds): MaybePromise<Admission | Denial>;
}

export function isDenial(result: Admission | Denial): result is Denial {
  return 'status' in result;
}

/** @throws RangeError */
export function requirePermission(permission: unknown): void {
  if (permission === undefined || permission === 'read' || permission === 'write') return;
  throw new RangeError(`permission must be read or write, but is ${String(permission)}`);
}

/** RFC 9110 section 5.6.2. */
const headerName = /^[!#$%&'*+.^_`|~0-9A-Za-z-]+$/;

/** @throws Error for invalid options */
export function createGate({ header, ...options }: GateOptions): Gate {
  if (header !== undefined && !headerName.test(header)) throw new Error('header must be the name of a header');
  const client = createLatchkeyClient(options);
  const readKey = header === undefined ? readCredential : readerOf(header.toLowerCase());
  return {
    check(request, { permission, scopes, ip, cost }) {
      const ask = (): MaybePromise<Admission | Denial> => {
        if (hasKeyInQuery(request.url ?? '')) return keyInUrl;
        const key = readKey(request);
        if (key === undefined) return noKey(header);
        const question: Question = { key, permission, cost };
        if (ip !== undefined) question.ip = ip;
        if (scopes !== undefined) question.scopes = scopes;
        return andThen(client.verify(question), (verdict) =>
          verdict.valid ? { apiKey: apiKeyIn(verdict), rateLimit: verdict.rateLimit } : denialOf(verdict, scopes),
        );
      };
      return withCatch(ask, denialOfError);
    },
    isLive: client.isLive,
    close: client.close,
  };
}

/** @throws LatchkeyUnavailable for a valid verdict without the key's id */
function apiKeyIn(verdict: Verdict): ApiKey {
  const {
    keyId,
    organizationId,
    partnerId,
    partnerExternalId,
    partnerEmail,
    permission,
    scopes,
    name,
    metadata,
    expiresAt,
  } = verdict;
  if (keyId === null || organizationId === null || permission === null || scopes === null || metadata === null) {
    throw new LatchkeyUnavailable('Latchkey returned a valid verdict without the id of the key.');
  }
  return Object.freeze({
    id: keyId,
    organizationId,
    partnerId,
    partnerExternalId,
    partnerEmail,
    permission,
    scopes,
    name,
    metadata,
    expiresAt,
  });
}

/** Node joins a repeated header with a comma, which no key contains. */
function readerOf(header: string): (request: GateRequest) => string | undefined {
  return ({ headers }) => {
    const value = headers[header];
    return Array.isArray(value) ? value.join(', ') : value;
  };
}

/** Recognized by the form of the value, because a parameter may have any name. */
const keyForm = /_k_[0-7][0-9a-hjkmnp-tv-z]{25}_[0-9A-Za-z]{40}/;

/** RFC 6750 section 5.3: keys do not belong into URLs. */
function hasKeyInQuery(url: string): boolean {
  const queryAt = url.indexOf('?');
  if (queryAt < 0) return false;
  const query = url.slice(queryAt + 1);
  return keyForm.test(query.includes('%') ? String(new URLSearchParams(query)) : query);
}
