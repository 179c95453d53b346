import { createServer, type IncomingMessage, type Server, type ServerOptions, type ServerResponse } from 'node:http';
import type { Socket } from 'node:net';
import type { FastifyBaseLogger } from 'fastify';
import { plainAddress } from '../lib/ip-address.ts';
import { limitedWarnings } from '../lib/limited-warnings.ts';

/** A client connection, from accept to close. */
export interface Connection {
  /**
   * The peer's address, mapped IPv4 as IPv4; undefined on a Unix socket. Read on arrival, because the system does not return
   * it after a reset.
   */
  readonly address: string | undefined;
  /** The response to the newest request; undefined if no request is in progress. */
  lastResponse(): ServerResponse | undefined;
  /** Calls `last` once all complete requests are answered. Later requests are not served. Only the first call has an effect. */
  endWith(last: () => void): void;
}

interface ServedConnection extends Connection {
  current: Exchange | undefined;
  waiting: Exchange[];
  /** The number of requests that Node has parsed and that are not served. */
  dropped: number;
  isEnding: boolean;
  /** Called when all requests are answered. */
  last: (() => void) | undefined;
}

interface Exchange {
  request: IncomingMessage;
  response: ServerResponse;
}

/** Limits on connections. */
export interface ConnectionBounds {
  /** The maximum number of open connections; further ones are closed immediately. */
  connections: number;
  /** A connection without reads and writes for this long is closed; the close may take twice as long. */
  silenceMs: number;
}

/** Waiting pipelined requests per connection. If there are more, the connection closes after these. */
const waitingPerConnectionLimit = 64;

/** Waiting pipelined requests of all connections. If there are more, the connection that sends the next one is closed. */
const waitingTotalLimit = 2_000;

const warnEveryMs = 1_000;

const servedConnections = new WeakMap<Socket, ServedConnection>();

/** The connection of a socket; undefined for sockets without a server, such as those of injected requests. */
export function connectionOf(socket: Socket): Connection | undefined {
  return servedConnections.get(socket);
}

/**
 * Creates an HTTP server that serves pipelined requests one at a time. Node starts all requests of a packet concurrently, so
 * a client that does not read could make it hold thousands of replies.
 */
export function createHttpServer(
  handle: (request: IncomingMessage, response: ServerResponse) => void,
  { connections, silenceMs, logger, ...options }: ServerOptions & ConnectionBounds & { logger: FastifyBaseLogger },
): Server {
  let waitingTotal = 0;

  function accept(socket: Socket): void {
    const address = socket.remoteAddress;
    // The connection was reset before it was accepted.
    if (address === undefined) return;
    const connection = createConnection(plainAddress(address));
    servedConnections.set(socket, connection);
    socket.once('close', () => {
      waitingTotal -= connection.waiting.length + connection.dropped;
      connection.waiting = [];
      connection.dropped = 0;
    });
  }

  function take(request: IncomingMessage, response: ServerResponse): void {
    const { socket } = request;
    const connection = servedConnections.get(socket);
    if (connection === undefined) {
      socket.destroy();
      return;
    }
    if (connection.current === undefined && !connection.isEnding) {
      serve(connection, { request, response });
      return;
    }
    waitingTotal += 1;
    if (connection.dropped === 0 && !connection.isEnding && connection.waiting.length < waitingPerConnectionLimit) {
      connection.waiting.push({ request, response });
    } else {
      connection.dropped += 1;
      socket.pause();
    }
    if (waitingTotal > waitingTotalLimit) socket.destroy();
  }

  function serve(connection: ServedConnection, exchange: Exchange): void {
    connection.current = exchange;
    exchange.response.on('close', closed);
    handle(exchange.request, exchange.response);
  }

  /** A shared function, to avoid a closure per request. */
  function closed(this: ServerResponse): void {
    const connection = servedConnections.get(this.req.socket);
    if (connection !== undefined) serveNext(connection);
  }

  function serveNext(connection: ServedConnection): void {
    const next = connection.waiting.shift();
    connection.current = next;
    if (next === undefined) {
      endNow(connection);
      return;
    }
    waitingTotal -= 1;
    if (connection.waiting.length === 0 && connection.dropped > 0) next.response.setHeader('connection', 'close');
    // Let other connections run first.
    setImmediate(() => {
      if (!next.request.socket.destroyed) serve(connection, next);
    });
  }

  const server = createServer(options, take);
  server.maxConnections = connections;
  server.prependListener('connection', accept);
  server.setTimeout(silenceMs, (socket) => {
    const current = servedConnections.get(socket)?.current;
    // A handler that is still running has its own time limits.
    if (current === undefined || socket.writableLength > 0) socket.destroy();
  });
  const warn = limitedWarnings(logger, warnEveryMs);
  server.on('drop', () =>
    warn({ connections }, 'New connections are closed: the maximum number of connections is reached.'),
  );
  server.on('error', (err: NodeJS.ErrnoException) => {
    // Such as EMFILE of accept(2). `listen` throws its own errors.
    if (err.syscall === 'accept') warn({ err }, 'A connection could not be accepted.');
  });
  return server;
}

function createConnection(address: string | undefined): ServedConnection {
  const connection: ServedConnection = {
    address,
    current: undefined,
    waiting: [],
    dropped: 0,
    isEnding: false,
    last: undefined,
    lastResponse: () => (connection.waiting.at(-1) ?? connection.current)?.response,
    endWith(last) {
      if (connection.isEnding) return;
      connection.isEnding = true;
      connection.last = last;
      // An incomplete request cannot be answered.
      if (connection.waiting.at(-1)?.request.complete === false) {
        connection.waiting.pop();
        connection.dropped += 1;
      }
      const { current, waiting } = connection;
      if (current === undefined || (waiting.length === 0 && !current.request.complete)) endNow(connection);
    },
  };
  return connection;
}

function endNow(connection: ServedConnection): void {
  const { last } = connection;
  connection.last = undefined;
  last?.();
}
