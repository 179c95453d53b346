import { createServer, type IncomingMessage, type Server, type ServerOptions, type ServerResponse } from 'node:http';
import type { Socket } from 'node:net';
import type { FastifyBaseLogger } from 'fastify';
import { plainAddress } from '../lib/ip-address.ts';
import { limitedWarnings } from '../lib/limited-warnings.ts';

/** What is known of a connection, from its arrival to its end. */
export interface Connection {
  /**
   * The peer's address, mapped IPv4 as IPv4; undefined where the peer has none, as on a Unix socket. Read on arrival,
   * because the system does not give it for a connection that was reset.
   */
  readonly address: string | undefined;
  /** What the newest of its requests is answered with; undefined while none is in work. */
  lastResponse(): ServerResponse | undefined;
  /** Runs `last` when what has arrived in full is answered. Nothing that arrives later is served. Only the first call counts. */
  endWith(last: () => void): void;
}

interface Served extends Connection {
  current: Exchange | undefined;
  waiting: Exchange[];
  /** Requests of which Node holds the objects although none of them is served. */
  dropped: number;
  isEnding: boolean;
  /** What is still to be done when all is answered. */
  last: (() => void) | undefined;
}

interface Exchange {
  request: IncomingMessage;
  response: ServerResponse;
}

export interface ConnectionBounds {
  /** Connections at once; what comes beyond is closed at once. */
  connections: number;
  /** A connection on which nothing was read or written for so long is closed, at most twice as late. */
  silenceMs: number;
}

/** Pipelined requests of one connection that wait for the one before them. Beyond it the connection ends after these. */
const waitingPerConnection = 64;

/** Pipelined requests of all connections. Beyond it the connection that brings another one is closed. */
const waitingInAll = 2_000;

const warnEveryMs = 1_000;

const known = new WeakMap<Socket, Served>();

/** Undefined for a socket that no server has accepted, such as the one of an injected request. */
export function connectionOf(socket: Socket): Connection | undefined {
  return known.get(socket);
}

/**
 * An HTTP server that serves the requests of a connection one after the other. Node by itself hands over all requests of a
 * packet at once, so that a client that reads nothing makes it hold thousands of replies.
 */
export function createHttpServer(
  handle: (request: IncomingMessage, response: ServerResponse) => void,
  { connections, silenceMs, logger, ...options }: ServerOptions & ConnectionBounds & { logger: FastifyBaseLogger },
): Server {
  let waitingNow = 0;

  function accept(socket: Socket): void {
    const address = socket.remoteAddress;
    // It was reset before it was accepted.
    if (address === undefined) return;
    const served = createConnection(plainAddress(address));
    known.set(socket, served);
    socket.once('close', () => {
      waitingNow -= served.waiting.length + served.dropped;
      served.waiting = [];
      served.dropped = 0;
    });
  }

  function take(request: IncomingMessage, response: ServerResponse): void {
    const { socket } = request;
    const served = known.get(socket);
    if (served === undefined) {
      socket.destroy();
      return;
    }
    if (served.current === undefined && !served.isEnding) {
      serve(served, { request, response });
      return;
    }
    waitingNow += 1;
    if (served.dropped === 0 && !served.isEnding && served.waiting.length < waitingPerConnection) {
      served.waiting.push({ request, response });
    } else {
      served.dropped += 1;
      socket.pause();
    }
    if (waitingNow > waitingInAll) socket.destroy();
  }

  function serve(served: Served, exchange: Exchange): void {
    served.current = exchange;
    exchange.response.on('close', closed);
    handle(exchange.request, exchange.response);
  }

  /** One function for all replies, because a closure for each is garbage on every request. */
  function closed(this: ServerResponse): void {
    const served = known.get(this.req.socket);
    if (served !== undefined) serveNext(served);
  }

  function serveNext(served: Served): void {
    const next = served.waiting.shift();
    served.current = next;
    if (next === undefined) {
      endNow(served);
      return;
    }
    waitingNow -= 1;
    if (served.waiting.length === 0 && served.dropped > 0) next.response.setHeader('connection', 'close');
    // Others come in between.
    setImmediate(() => {
      if (!next.request.socket.destroyed) serve(served, next);
    });
  }

  const server = createServer(options, take);
  server.maxConnections = connections;
  server.prependListener('connection', accept);
  server.setTimeout(silenceMs, (socket) => {
    const current = known.get(socket)?.current;
    // A reply that is still being made is bounded by what makes it.
    if (current === undefined || socket.writableLength > 0) socket.destroy();
  });
  const warn = limitedWarnings(logger, warnEveryMs);
  server.on('drop', () => warn({ connections }, 'Connections are closed at once: there are as many as there may be.'));
  server.on('error', (err: NodeJS.ErrnoException) => {
    // Such as EMFILE of accept(2). What keeps the server from listening is thrown by `listen`.
    if (err.syscall === 'accept') warn({ err }, 'A connection could not be accepted.');
  });
  return server;
}

function createConnection(address: string | undefined): Served {
  const served: Served = {
    address,
    current: undefined,
    waiting: [],
    dropped: 0,
    isEnding: false,
    last: undefined,
    lastResponse: () => (served.waiting.at(-1) ?? served.current)?.response,
    endWith(last) {
      if (served.isEnding) return;
      served.isEnding = true;
      served.last = last;
      // One that will never be complete cannot be answered.
      if (served.waiting.at(-1)?.request.complete === false) {
        served.waiting.pop();
        served.dropped += 1;
      }
      const { current, waiting } = served;
      if (current === undefined || (waiting.length === 0 && !current.request.complete)) endNow(served);
    },
  };
  return served;
}

function endNow(served: Served): void {
  const { last } = served;
  served.last = undefined;
  last?.();
}
