import type { IncomingMessage, ServerResponse } from 'node:http';
import { permissionFor } from '../../../src/domain/permissions.ts';
import { rateLimitFields } from '../../../src/domain/rate-limit.ts';
import { andThen, callBack, type MaybePromise } from '../../../src/lib/maybe-promise.ts';
import { type Denial, problemHeaders, problemOf } from './denial.ts';
import { type Admission, type ApiKey, createGate, type GateOptions, isDenial, requirePermission } from './gate.ts';
import { type Access, requireScopes } from './verdict.ts';

export type { Denial } from './denial.ts';
export type { ApiKey } from './gate.ts';

declare global {
  namespace Express {
    interface Request {
      /** The key of the request. */
      apiKey?: ApiKey;
    }
  }
}

/** A request of Express or Connect. */
export type MiddlewareRequest = IncomingMessage & {
  /** The client's address, by Express's `trust proxy`. */
  ip?: string | undefined;
  /** The path with which the request arrived; a router shortens `url`. */
  originalUrl?: string | undefined;
  apiKey?: ApiKey | undefined;
};

export type Middleware<Request = MiddlewareRequest, Response = ServerResponse> = (
  request: Request,
  response: Response,
  next: (error?: unknown) => void,
) => void;

/** What requests need. */
export interface Needs<Request = MiddlewareRequest> {
  /** Default: `read` for GET, HEAD and OPTIONS, otherwise `write`. */
  permission?: Access;
  /** Scopes that must be on the key, all of them. */
  scopes?: readonly string[];
  /** How much a request counts. Default: 1. */
  cost?: (request: Request) => number;
}

export interface LatchkeyOptions<Request = MiddlewareRequest, Response = ServerResponse>
  extends GateOptions,
    Needs<Request> {
  /** Whether successful replies also have the key's limits in RateLimit and RateLimit-Policy. Default: false. */
  rateLimitFields?: boolean;
  /**
   * Replies to a rejected request in the application's own way. Status and headers are set already and may be changed.
   * If it has not ended the response when it returns, or when its promise resolves, the problem document is sent. The
   * request stays rejected.
   */
  onDenied?: (denial: Denial, request: Request, response: Response) => unknown;
}

export interface LatchkeyMiddleware<Request = MiddlewareRequest, Response = ServerResponse>
  extends Middleware<Request, Response> {
  /** A middleware for routes with other needs. It shares the client, and all needs that are not named. */
  needing(needs: Needs<Request>): Middleware<Request, Response>;
  /** Whether cached answers may be used: the stream of changes is connected. */
  isLive(): boolean;
  /** Reports the remaining uses and ends the connections. */
  close(): Promise<void>;
}

/**
 * Creates a middleware for Express or Connect that lets only requests with a valid key pass.
 * @throws Error for invalid options
 */
export function latchkey<
  Request extends MiddlewareRequest = MiddlewareRequest,
  Response extends ServerResponse = ServerResponse,
>({
  permission,
  scopes,
  cost,
  onDenied,
  rateLimitFields: sendsLimits = false,
  ...options
}: LatchkeyOptions<Request, Response>): LatchkeyMiddleware<Request, Response> {
  const defaults: Needs<Request> = {
    ...(permission && { permission }),
    ...(scopes && { scopes }),
    ...(cost && { cost }),
  };
  requireNeeds(defaults);
  const gate = createGate(options);

  function needing(own: Needs<Request>): Middleware<Request, Response> {
    requireNeeds(own);
    const needs = { ...defaults, ...own };
    return (request, response, next) => {
      let isAdmitted = false;
      const check = () =>
        andThen(decide(request, needs), (result) => {
          if (isDenial(result)) return deny(result, request, response);
          isAdmitted = true;
          // Not by assignment: the application may have a property of this name on its prototype.
          const property = { value: result.apiKey, configurable: true, enumerable: true, writable: true };
          Object.defineProperty(request, 'apiKey', property);
          if (sendsLimits) setHeaders(response, rateLimitFields(result.rateLimit));
          return undefined;
        });
      callBack(check, (error) => {
        if (error !== undefined || isAdmitted) next(error);
      });
    };
  }

  function decide(request: Request, needs: Needs<Request>): MaybePromise<Admission | Denial> {
    const { headers, rawHeaders, originalUrl, url = '', method = '', socket } = request;
    const asked = { headers, rawHeaders, url: originalUrl ?? url };
    const { permission = permissionFor(method), scopes } = needs;
    const ip = request.ip ?? socket.remoteAddress;
    return gate.check(asked, { permission, scopes, ip, cost: needs.cost?.(request) ?? 1 });
  }

  async function deny(denial: Denial, request: Request, response: Response): Promise<void> {
    response.statusCode = denial.status;
    setHeaders(response, problemHeaders(denial));
    await onDenied?.(denial, request, response);
    if (response.headersSent || response.writableEnded) return;
    response.setHeader('content-type', 'application/problem+json; charset=utf-8');
    response.end(problemOf(denial));
  }

  return Object.assign(needing({}), { needing, isLive: gate.isLive, close: gate.close });
}

/** @throws RangeError */
function requireNeeds({ permission, scopes }: Pick<Needs, 'permission' | 'scopes'>): void {
  requirePermission(permission);
  requireScopes(scopes);
}

function setHeaders(response: ServerResponse, headers: Record<string, string>): void {
  for (const [name, value] of Object.entries(headers)) response.setHeader(name, value);
}
