import { permissionFor } from '../../../src/domain/permissions.ts';
import { rateLimitFields } from '../../../src/domain/rate-limit.ts';
import { type Denial, problemHeaders, problemOf } from './denial.ts';
import { type ApiKey, createGate, type GateOptions, type GateRequest, isDenial, requirePermission } from './gate.ts';
import { type Access, requireScopes } from './verdict.ts';

export type { Denial } from './denial.ts';
export type { ApiKey } from './gate.ts';

export interface LatchkeyOptions extends GateOptions {
  /**
   * Replies to a rejected request in the application's own way. Without a response, the problem document is sent. The
   * request stays rejected.
   */
  onDenied?: (denial: Denial, request: Request) => Response | undefined | Promise<Response | undefined>;
}

/** What one request needs. */
export interface Needs {
  /** Default: `read` for GET, HEAD and OPTIONS, otherwise `write`. */
  permission?: Access;
  /** Scopes that must be on the key, all of them. */
  scopes?: readonly string[];
  /** How much the request counts. Default: 1. */
  cost?: number;
  /** The client's address, which a `Request` does not have. Without it, a key with allowedIps is rejected. */
  ip?: string | undefined;
}

/** The key of a request that may pass, or the response to one that may not. */
export type Checked =
  | {
      apiKey: ApiKey;
      /** RateLimit and RateLimit-Policy, for the response. */
      rateLimitFields: Record<string, string>;
      response?: undefined;
    }
  | { response: Response; apiKey?: undefined; rateLimitFields?: undefined };

export interface LatchkeyGuard {
  /** Never rejects because Latchkey is unavailable: the response is then 503. */
  check(request: Request, needs?: Needs): Promise<Checked>;
  /** Whether cached answers may be used: the stream of changes is connected. */
  isLive(): boolean;
  /** Reports the remaining uses and ends the connections. */
  close(): Promise<void>;
}

/**
 * Creates a guard for servers that are built on `Request` and `Response`, such as Hono, Bun, Deno and Next.
 * @throws Error for invalid options
 */
export function latchkey({ onDenied, ...options }: LatchkeyOptions): LatchkeyGuard {
  const gate = createGate(options);
  return {
    async check(request, { permission = permissionFor(request.method), scopes, cost = 1, ip } = {}) {
      requirePermission(permission);
      requireScopes(scopes);
      const result = await gate.check({ ...headersOf(request), url: request.url }, { permission, scopes, ip, cost });
      if (!isDenial(result)) return { apiKey: result.apiKey, rateLimitFields: rateLimitFields(result.rateLimit) };
      return { response: (await onDenied?.(result, request)) ?? toResponse(result) };
    },
    isLive: gate.isLive,
    close: gate.close,
  };
}

/** `Headers` joins a repeated header with a comma, which no credential contains. */
function headersOf({ headers }: Request): Pick<GateRequest, 'headers' | 'rawHeaders'> {
  const [authorization, ...others] = headers.get('authorization')?.split(', ') ?? [];
  if (authorization === undefined) return { headers: Object.fromEntries(headers), rawHeaders: [] };
  return {
    headers: { ...Object.fromEntries(headers), authorization },
    rawHeaders: [authorization, ...others].flatMap((value) => ['authorization', value]),
  };
}

function toResponse(denial: Denial): Response {
  const headers = { ...problemHeaders(denial), 'content-type': 'application/problem+json; charset=utf-8' };
  return new Response(problemOf(denial), { status: denial.status, headers });
}
