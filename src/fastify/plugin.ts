import type { IncomingMessage } from 'node:http';
import type { Socket } from 'node:net';
import type { FastifyReply, FastifyRequest, HookHandlerDoneFunction } from 'fastify';
import fp from 'fastify-plugin';
import { readCredential } from '../auth/credential.ts';
import { type Answers, createAnswers, rateLimitOfKnown } from '../client/answers.ts';
import { KnownKey } from '../client/known-keys.ts';
import type { ClientOptions } from '../client/options.ts';
import {
  type ApiKey,
  apiKeyIn,
  CostExceedsLimit,
  LatchkeyUnavailable,
  permissionFor,
  type Question,
  type RateLimitState,
  type Verdict,
} from '../client/verdict.ts';
import { Problem } from '../core/errors.ts';
import type { Access } from '../core/permissions.ts';
import {
  costsTooMuch,
  type Denial,
  denialOf,
  denialOfProblem,
  noKey,
  rateLimitFields,
  sendProblem,
  unavailable,
} from './denial.ts';

export type { ApiKey } from '../client/verdict.ts';
export type { Denial } from './denial.ts';

declare module 'fastify' {
  interface FastifyRequest {
    /** Whose request it is; null on routes with `permission: 'none'`. */
    apiKey: ApiKey | null;
  }

  interface FastifyContextConfig {
    /** What a key must permit on this route. Where nothing is said: `read` for GET, HEAD and OPTIONS, `write` for others. */
    permission?: Access | 'none';
  }
}

export interface LatchkeyOptions extends Omit<ClientOptions, 'onTurn' | 'onTrouble'> {
  /** Where clients send the key, instead of `Authorization: Bearer …` and `X-API-Key`; such as `x-acme-key`. */
  header?: string;
  /** How much a request counts; 1 where nothing is said. */
  cost?: (request: FastifyRequest) => number;
  /** Whether answers that are not refusals tell the key's limits too, in RateLimit and RateLimit-Policy. Not by default. */
  rateLimitFields?: boolean;
  /**
   * Answers a refused request in the application's own way: what it returns is sent as the body. Status and headers are set
   * already and may be changed. Where it returns nothing, the problem document is sent. It cannot let the request in.
   */
  onDenied?: (denial: Denial, request: FastifyRequest, reply: FastifyReply) => unknown;
}

const permissions: ReadonlySet<unknown> = new Set([undefined, 'read', 'write', 'none']);

/** Lets requests in only with a key that Latchkey says is good: every route that is registered after it. */
export const latchkey = fp<LatchkeyOptions>(
  async (app, { header, cost, onDenied, rateLimitFields: tellsLimits = false, ...options }) => {
    const { log } = app;
    const answers: Answers = createAnswers({
      ...options,
      onTurn: (isLive, cause) => {
        if (isLive) log.info('API keys are answered from memory.');
        else log.warn(`Changes of API keys do not arrive (${reasonOf(cause)}); Latchkey is asked about each request.`);
      },
      // One line that says what to change. Stacks would say where this library is.
      onTrouble: (error) => log.error(`API keys cannot be checked by Latchkey at ${options.url}: ${error.message}`),
    });
    /**
     * The key that a connection brought last, which mostly is the next one, too. Not a property of the connection: objects of more
     * forms than a few make everything slower that Node does with them.
     */
    const broughtLast = new WeakMap<Socket, KnownKey>();
    const keyOf = header === undefined ? readCredential : readerOf(header.toLowerCase());
    app.decorateRequest('apiKey', null);
    app.addHook('onRoute', ({ config, method, url }) => {
      if (permissions.has(config?.permission)) return;
      throw new Error(`${String(method)} ${url}: config.permission must be read, write or none`);
    });
    app.addHook('onRequest', (request, reply, done) => {
      const permission = request.routeOptions.config.permission ?? permissionFor(request.method);
      if (permission === 'none') done();
      else guard(request, reply, permission, done);
    });
    app.addHook('onClose', () => answers.close());

    function guard(
      request: FastifyRequest,
      reply: FastifyReply,
      permission: Access,
      done: HookHandlerDoneFunction,
    ): void {
      let answer: ReturnType<Answers['find']>;
      try {
        refuseKeyInUrl(request.raw.url ?? '');
        const key = keyOf(request.raw);
        if (key === undefined) {
          deny(noKey(header), request, reply, done);
          return;
        }
        const connection = request.raw.socket;
        const last = broughtLast.get(connection);
        answer = answers.find(new RequestQuestion(key, permission, cost?.(request) ?? 1, request), last);
        if (answer !== last && answer instanceof KnownKey) broughtLast.set(connection, answer);
      } catch (error) {
        refuse(error, request, reply, done);
        return;
      }
      if (answer instanceof KnownKey) {
        letIn(answer.apiKey, tellsLimits ? rateLimitOfKnown(answer) : null, request, reply, done);
      } else if (answer instanceof Promise) {
        answer.then(
          (verdict) => conclude(verdict, request, reply, done),
          (error: unknown) => refuse(error, request, reply, done),
        );
      } else conclude(answer, request, reply, done);
    }

    function conclude(
      verdict: Verdict,
      request: FastifyRequest,
      reply: FastifyReply,
      done: HookHandlerDoneFunction,
    ): void {
      if (!verdict.valid) {
        deny(denialOf(verdict), request, reply, done);
        return;
      }
      let apiKey: ApiKey;
      try {
        apiKey = apiKeyIn(verdict);
      } catch (error) {
        refuse(error, request, reply, done);
        return;
      }
      letIn(apiKey, verdict.rateLimit, request, reply, done);
    }

    function letIn(
      apiKey: ApiKey,
      rateLimit: RateLimitState | null,
      request: FastifyRequest,
      reply: FastifyReply,
      done: HookHandlerDoneFunction,
    ): void {
      request.apiKey = apiKey;
      if (tellsLimits) reply.headers(rateLimitFields(rateLimit));
      done();
    }

    function refuse(error: unknown, request: FastifyRequest, reply: FastifyReply, done: HookHandlerDoneFunction): void {
      if (error instanceof Problem) deny(denialOfProblem(error), request, reply, done);
      else if (error instanceof CostExceedsLimit) deny(costsTooMuch, request, reply, done);
      else if (error instanceof LatchkeyUnavailable) {
        // The cause is logged once, however many requests meet it.
        request.log.debug({ reason: error.message }, 'Latchkey could not be asked about an API key.');
        deny(unavailable, request, reply, done);
      } else done(error as Error);
    }

    /** Sends a reply and never calls `done` but with an error: the request goes no further. */
    function deny(denial: Denial, request: FastifyRequest, reply: FastifyReply, done: HookHandlerDoneFunction): void {
      reply.code(denial.status).headers({ 'cache-control': 'no-store', ...denial.headers });
      // What it throws at once is an error like any other: this may run where nobody would catch it.
      Promise.resolve()
        .then(() => onDenied?.(denial, request, reply))
        .then((body) => {
          if (reply.sent) return;
          if (body === undefined) sendProblem(request, reply, denial);
          else reply.send(body);
        })
        .catch(done);
    }
  },
  { name: 'latchkey', fastify: '5.x' },
);

function reasonOf(cause: unknown): string {
  return cause instanceof Error ? cause.message : String(cause);
}

/** Looks at the address only where it matters: that takes as long as to look up the key. */
class RequestQuestion implements Question {
  readonly key: string;
  readonly permission: Access;
  readonly cost: number;
  readonly #request: FastifyRequest;

  constructor(key: string, permission: Access, cost: number, request: FastifyRequest) {
    this.key = key;
    this.permission = permission;
    this.cost = cost;
    this.#request = request;
  }

  get ip(): string {
    return this.#request.ip;
  }
}

/** A repeated header is joined with a comma, which no key contains. */
function readerOf(header: string): (request: Pick<IncomingMessage, 'headers'>) => string | undefined {
  return ({ headers }) => {
    const value = headers[header];
    return Array.isArray(value) ? value.join(', ') : value;
  };
}

/** By the value's form, since a parameter may be called anything. */
const keyForm = /_k_[0-7][0-9a-hjkmnp-tv-z]{25}_[0-9A-Za-z]{40}/;

/** RFC 6750 section 5.3: keys do not belong into URLs. @throws Problem `bad_request` */
function refuseKeyInUrl(url: string): void {
  const queryAt = url.indexOf('?');
  if (queryAt < 0) return;
  const query = url.slice(queryAt + 1);
  if (!keyForm.test(query.includes('%') ? String(new URLSearchParams(query)) : query)) return;
  throw new Problem(
    'bad_request',
    'An API key in the query string is refused: URLs end up in logs and histories. Send it in a header, and replace it.',
  );
}
