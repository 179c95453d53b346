import { randomUUID } from 'node:crypto';
import type { IncomingMessage, Server, ServerResponse } from 'node:http';
import type { Socket } from 'node:net';
import { type FastifyBaseLogger, type FastifyHttpOptions, LogController } from 'fastify';
import { createSecretText } from '../crypto/secret-text.ts';
import { Problem } from '../domain/errors.ts';
import { isWithin, plainAddress, toNetworks } from '../lib/ip-address.ts';
import { answerFrameworkError } from './error-handler.ts';
import { problemBody, problemHeaders } from './problem.ts';
import { type Connection, connectionOf, createHttpServer } from './server.ts';

export interface ServerSettings {
  logger: FastifyBaseLogger;
  /** What every token of this installation begins with. */
  tokenPrefix: string;
  /** Addresses or networks of proxies whose X-Forwarded-For is believed; false: nobody's. */
  trustProxy: string[] | false;
  /** How long a request may take to arrive, headers and body. */
  receiveTimeoutMs?: number;
  /** A reply of which the client takes nothing for so long is cut, at most twice as late. */
  writeTimeoutMs?: number;
  /** Connections at once. */
  maxConnections?: number;
}

const bodyLimitBytes = 65_536;
const headerLimitBytes = 16_384;

/** What Node's and Fastify's servers are told, so that their own refusals are problems too. */
export function serverOptions(settings: ServerSettings) {
  const { logger, trustProxy, receiveTimeoutMs = 10_000, writeTimeoutMs = 15_000, maxConnections = 10_000 } = settings;
  return {
    loggerInstance: logger,
    logController: new LogController({ disableRequestLogging: true }),
    // A line about a request names it by itself, because a logger for each request is garbage on every verification.
    childLoggerFactory: (parent: FastifyBaseLogger) => parent,
    trustProxy: trustProxy === false ? false : trusting(trustProxy),
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
        // A hook refuses a missing Host with a problem. Node itself would close without one.
        requireHostHeader: false,
      }),
    clientErrorHandler: answerBrokenRequest,
    frameworkErrors: answerFrameworkError,
  } satisfies FastifyHttpOptions<Server>;
}

/** What Fastify believes of a proxy, such as the scheme, by the same rule as the address. */
function trusting(proxies: readonly string[]): (peer: string | undefined) => boolean {
  const networks = toNetworks(proxies);
  return (peer) => {
    // Of a connection that is gone Fastify has no address.
    const address = plainAddress(peer);
    return address !== undefined && isWithin(networks, address);
  };
}

const saneRequestId = /^[A-Za-z0-9._:-]{1,128}$/;

/** The caller's own X-Request-Id where it is harmless in a log, without tokens; otherwise a UUID. */
function requestIds(redact: (text: string) => string) {
  return ({ headers }: Pick<IncomingMessage, 'headers'>): string => {
    const given = headers['x-request-id'];
    return typeof given === 'string' && saneRequestId.test(given) ? redact(given) : randomUUID();
  };
}

const clientsPath = '/v1/authorize/';

/** Behind this path stands whatever a gateway's client has asked for. It is neither parsed nor logged. */
function rewriteUrl({ url = '/' }: Pick<IncomingMessage, 'url'>): string {
  return url.startsWith(clientsPath) ? `${clientsPath}client` : url;
}

/** What the parser refuses before there is a request. By the code that Node or llhttp gives it. */
function brokenRequestProblem(code: string | undefined): Problem {
  switch (code) {
    case 'HPE_HEADER_OVERFLOW':
      return new Problem('headers_too_large', 'Request line and headers together are over 16 KiB.');
    case 'ERR_HTTP_REQUEST_TIMEOUT':
      return new Problem('request_timeout', 'The request did not arrive in full in time.');
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
  // A response that has begun must not get a second one into its middle.
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
