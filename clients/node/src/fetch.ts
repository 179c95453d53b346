import { type Denial, problemHeaders, problemOf, rateLimitFields } from './denial.ts';
import { type ApiKey, createGate, type GateOptions, isDenial } from './gate.ts';
import { type Access, permissionFor } from './verdict.ts';

export type { Denial } from './denial.ts';
export type { ApiKey } from './gate.ts';

export interface LatchkeyOptions extends GateOptions {
  /** Replies to a rejected request in the application's own way. The request stays rejected. */
  onDenied?: (denial: Denial, request: Request) => Response | Promise<Response>;
}

/** What one request needs. */
export interface Needs {
  /** Default: `read` for GET, HEAD and OPTIONS, otherwise `write`. */
  permission?: Access;
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
  | { response: Response; apiKey?: undefined };

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
    async check(request, { permission = permissionFor(request.method), cost = 1, ip } = {}) {
      const { url, headers } = request;
      // `Headers` joins a repeated header with a comma, which no key contains.
      const asked = { headers: Object.fromEntries(headers), rawHeaders: [], url, ip };
      const result = await gate.check(asked, permission, cost);
      if (!isDenial(result)) return { apiKey: result.apiKey, rateLimitFields: rateLimitFields(result.rateLimit) };
      return { response: await (onDenied ?? toResponse)(result, request) };
    },
    isLive: gate.isLive,
    close: gate.close,
  };
}

function toResponse(denial: Denial): Response {
  const headers = { ...problemHeaders(denial), 'content-type': 'application/problem+json; charset=utf-8' };
  return new Response(problemOf(denial), { status: denial.status, headers });
}
