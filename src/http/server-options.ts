import { randomUUID } from 'node:crypto';
import type { IncomingMessage, Server, ServerResponse } from 'node:http';
import type { Socket } from 'node:net';
import { type FastifyBaseLogger, type FastifyHttpOptions, LogController } from 'fastify';
import { createSecretText } from '../crypto/secret-text.ts';
import { Problem } from '../domain/errors.ts';
import { isWithin, plainAddress, toNetworks } from '../lib/ip-address.ts';
import { answerFrameworkError } from './error-handler.ts';
import { problemBody, problemHeaders } from './problem.ts';
import { withoutPresented } from './request-facts.ts';
import { type Connection, connectionOf, createHttpServer } from './server.ts';

/** Settings of an HTTP server. */
export interface ServerSettings {
  logger: FastifyBaseLogger;
  /** The prefix of all tokens of this installation. */
  tokenPrefix: string;
  /** Addresses or networks of proxies whose X-Forwarded-For is trusted; false: none. */
  trustProxy: string[] | false;
  /** How long headers and body may take to arrive. */
  receiveTimeoutMs?: number;
  /** A reply that the client does not read for this long is cut; the cut may take twice as long. */
  writeTimeoutMs?: number;
  /** The maximum number of open connections. */
  maxConnections?: number;
}

const bodyLimitBytes = 65_536;
const headerLimitBytes = 16_384;

/** Options for Fastify and Node's HTTP server. Errors that they answer themselves become problem documents too. */
export function serverOptions(settings: ServerSettings) {
  const { logger, trustProxy, receiveTimeoutMs = 10_000, writeTimeoutMs = 15_000, maxConnections = 10_000 } = settings;
  return {
    loggerInstance: logger,
    logController: new LogController({ disableRequestLogging: true }),
    // No child logger per request, to save memory: log lines name the request id themselves.
    childLoggerFactory: (parent: FastifyBaseLogger) => parent,
    trustProxy: trustProxy === false ? false : proxyTrust(trustProxy),
    genReqId: requestIds(createSecretText(settings.tokenPrefix).redact),
    rewriteUrl,
    bodyLimit: bodyLimitBytes,
    forceCloseConnections: 'idle',
    return503OnClosing: false,
    routerOptions: { maxParamLength: 200 },
    serverFactory: (handle: (request: IncomingMessage, response: ServerResponse) => void) =>
      createHttpServer(handle, {
        logger,
        connections: maxConnections,
        silenceMs: writeTimeoutMs,
        keepAliveTimeout: 65_000,
        requestTimeout: receiveTimeoutMs,
        headersTimeout: receiveTimeoutMs,
        connectionsCheckingInterval: Math.min(1_000, receiveTimeoutMs / 4),
        maxHeaderSize: headerLimitBytes,
        // A hook rejects a missing Host with a problem; Node would close the connection.
        requireHostHeader: false,
      }),
    clientErrorHandler: answerBrokenRequest,
    frameworkErrors: answerFrameworkError,
  } satisfies FastifyHttpOptions<Server>;
}

/** Whether Fastify trusts a proxy's headers, such as the scheme. */
function proxyTrust(proxies: readonly string[]): (peer: string | undefined) => boolean {
  const networks = toNetworks(proxies);
  return (peer) => {
    // The peer is undefined if the connection is gone.
    const address = plainAddress(peer);
    return address !== undefined && isWithin(networks, address);
  };
}

const safeRequestId = /^[A-Za-z0-9._:-]{1,128}$/;

/** Uses the caller's X-Request-Id if it is safe to log, with tokens masked; otherwise a UUID. */
function requestIds(redact: (text: string) => string) {
  return (raw: Pick<IncomingMessage, 'headers' | 'url'>): string => {
    const given = raw.headers['x-request-id'];
    const isSafe = typeof given === 'string' && safeRequestId.test(given);
    return isSafe ? withoutPresented(raw, redact(given)) : randomUUID();
  };
}

const clientsPath = '/v1/authorize/';

/** Cuts off the client's own path behind this prefix: it is neither parsed nor logged. */
function rewriteUrl({ url = '/' }: Pick<IncomingMessage, 'url'>): string {
  return url.startsWith(clientsPath) ? `${clientsPath}client` : url;
}

/** Errors of the HTTP parser as problems, by the code of Node or llhttp. */
function brokenRequestProblem(code: string | undefined): Problem {
  switch (code) {
    case 'HPE_HEADER_OVERFLOW':
      return new Problem(
        'headers_too_large',
        'Request line and headers together exceed 16 KiB. Send fewer or shorter headers.',
      );
    case 'ERR_HTTP_REQUEST_TIMEOUT':
      return new Problem('request_timeout', 'The request did not arrive completely in time. Send it again.');
    default:
      return new Problem('bad_request', 'This is not a well-formed HTTP/1.1 request.');
  }
}

function answerBrokenRequest(error: Error & { code?: string }, socket: Socket): void {
  const connection = connectionOf(socket);
  if (connection === undefined || error.code === 'ECONNRESET' || !socket.writable) socket.destroy();
  else connection.endWith(() => endWithProblem(socket, connection, brokenRequestProblem(error.code)));
}

function endWithProblem(socket: Socket, connection: Connection, problem: Problem): void {
  // A reply that has begun must not be mixed with another one.
  if (!socket.writable || connection.lastResponse()?.headersSent === true) {
    socket.destroy();
    return;
  }
  const requestId = randomUUID();
  const body = problemBody(problem, requestId);
  const headers = { ...problemHeaders(requestId), connection: 'close', 'content-length': Buffer.byteLength(body) };
  const lines = Object.entries(headers).map(([name, value]) => `${name}: ${value}\r\n`);
  socket.end(`HTTP/1.1 ${problem.status} ${statusText(problem.status)}\r\n${lines.join('')}\r\n${body}`);
}

function statusText(status: number): string {
  return { 400: 'Bad Request', 408: 'Request Timeout', 431: 'Request Header Fields Too Large' }[status] ?? '';
}
