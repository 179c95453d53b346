import type { IncomingMessage, ServerResponse } from 'node:http';
import { andThen, callBack, type MaybePromise } from '../../../src/lib/maybe-promise.ts';
import { type Denial, problemHeaders, problemOf, rateLimitFields } from './denial.ts';
import { type ApiKey, createGate, type GateOptions, isDenial } from './gate.ts';
import { type Access, permissionFor } from './verdict.ts';

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

export type Middleware = (
  request: MiddlewareRequest,
  response: ServerResponse,
  next: (error?: unknown) => void,
) => void;

/** What requests need. */
export interface Needs {
  /** Default: `read` for GET, HEAD and OPTIONS, otherwise `write`. */
  permission?: Access;
  /** How much a request counts. Default: 1. */
  cost?: (request: MiddlewareRequest) => number;
}

export interface LatchkeyOptions extends GateOptions, Needs {
  /** Whether successful replies also have the key's limits in RateLimit and RateLimit-Policy. Default: false. */
  rateLimitFields?: boolean;
  /**
   * Replies to a rejected request in the application's own way. Status and headers are set already and may be changed.
   * If it does not end the response, the problem document is sent. The request stays rejected.
   */
  onDenied?: (denial: Denial, request: MiddlewareRequest, response: ServerResponse) => unknown;
}

export interface LatchkeyMiddleware extends Middleware {
  /** A middleware for routes with other needs. It shares the client. */
  needing(needs: Needs): Middleware;
  /** Whether cached answers may be used: the stream of changes is connected. */
  isLive(): boolean;
  /** Reports the remaining uses and ends the connections. */
  close(): Promise<void>;
}

/**
 * Creates a middleware for Express or Connect that lets only requests with a valid key pass.
 * @throws Error for invalid options
 */
export function latchkey({
  permission,
  cost,
  onDenied,
  rateLimitFields: sendsLimits = false,
  ...options
}: LatchkeyOptions): LatchkeyMiddleware {
  const gate = createGate(options);

  function needing(needs: Needs): Middleware {
    return (request, response, next) => {
      const checked = () => authorize(request, response, needs);
      callBack(checked, (error) => {
        if (error !== undefined || request.apiKey !== undefined) next(error);
      });
    };
  }

  function authorize(request: MiddlewareRequest, response: ServerResponse, needs: Needs): MaybePromise<unknown> {
    const { headers, rawHeaders, originalUrl, url = '', method = '', socket } = request;
    const asked = { headers, rawHeaders, url: originalUrl ?? url, ip: request.ip ?? socket.remoteAddress };
    delete request.apiKey;
    const permission = needs.permission ?? permissionFor(method);
    return andThen(gate.check(asked, permission, needs.cost?.(request) ?? 1), (result) => {
      if (isDenial(result)) return deny(result, request, response);
      request.apiKey = result.apiKey;
      if (sendsLimits) setHeaders(response, rateLimitFields(result.rateLimit));
      return undefined;
    });
  }

  async function deny(denial: Denial, request: MiddlewareRequest, response: ServerResponse): Promise<void> {
    response.statusCode = denial.status;
    setHeaders(response, problemHeaders(denial));
    await onDenied?.(denial, request, response);
    if (response.headersSent || response.writableEnded) return;
    response.setHeader('content-type', 'application/problem+json; charset=utf-8');
    response.end(problemOf(denial));
  }

  const needs = { ...(permission && { permission }), ...(cost && { cost }) };
  return Object.assign(needing(needs), { needing, isLive: gate.isLive, close: gate.close });
}

function setHeaders(response: ServerResponse, headers: Record<string, string>): void {
  for (const [name, value] of Object.entries(headers)) response.setHeader(name, value);
}
