import { once } from 'node:events';
import { createServer as createHttpServer, type IncomingMessage, type ServerResponse } from 'node:http';
import { createServer as createHttpsServer } from 'node:https';
import { type AddressInfo, createServer, type Server, type Socket } from 'node:net';
import type { TLSSocket } from 'node:tls';
import type { Test } from 'tap';

/** A server that counts its connections. */
export interface Listener {
  port: number;
  /** All connections so far, whatever happened to them. */
  connections(): number;
  /** The open connections. */
  open(): number;
}

export interface Arrived {
  method: string;
  url: string;
  headers: IncomingMessage['headers'];
  /** The server name of the TLS handshake; undefined without TLS. */
  servername: string | false | null | undefined;
  /** The raw bytes of the body. */
  body: Buffer;
}

export type HttpListener = Listener & { arrived: Arrived[] };

const noContent: Answer = (response) => response.writeHead(204).end();

type Answer = (response: ServerResponse, request: Arrived) => void;

/** Accepts connections and passes them to a function. */
export async function listenRaw(t: Test, serve: (socket: Socket) => void, host = '127.0.0.1'): Promise<Listener> {
  return listen(t, createServer(serve), host);
}

/** Listens at every address of this machine, also of IPv6 if it has it. */
export async function listenEverywhere(t: Test): Promise<Listener> {
  const serve = (socket: Socket) => {
    socket.end('HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n');
    socket.resume();
  };
  return listenRaw(t, serve, '::').catch(() => listenRaw(t, serve, '0.0.0.0'));
}

/** Stores received requests, and replies 204 by default. */
export async function listenHttp(t: Test, answer: Answer = noContent) {
  const arrived: Arrived[] = [];
  return { arrived, ...(await listen(t, createHttpServer(storing(arrived, answer)))) } satisfies HttpListener;
}

export async function listenHttps(t: Test, certificate: { cert: string; key: string }): Promise<HttpListener> {
  const arrived: Arrived[] = [];
  const server = createHttpsServer(certificate, storing(arrived, noContent));
  return { arrived, ...(await listen(t, server)) };
}

function storing(arrived: Arrived[], answer: Answer) {
  return async (request: IncomingMessage, response: ServerResponse) => {
    const chunks: Buffer[] = [];
    for await (const chunk of request) chunks.push(chunk);
    const { method = '', url = '', headers } = request;
    const { servername } = request.socket as TLSSocket;
    const arrivedRequest = { method, url, headers, servername, body: Buffer.concat(chunks) };
    arrived.push(arrivedRequest);
    answer(response, arrivedRequest);
  };
}

async function listen(t: Test, server: Server, host = '127.0.0.1'): Promise<Listener> {
  const sockets = new Set<Socket>();
  let connections = 0;
  server.on('connection', (socket: Socket) => {
    connections += 1;
    sockets.add(socket);
    socket.on('error', () => undefined);
    socket.on('close', () => sockets.delete(socket));
  });
  server.listen(0, host);
  await once(server, 'listening');
  t.teardown(() => {
    for (const socket of sockets) socket.destroy();
    server.close();
  });
  return {
    port: (server.address() as AddressInfo).port,
    connections: () => connections,
    open: () => sockets.size,
  };
}
