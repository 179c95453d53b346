import { once } from 'node:events';
import { type AddressInfo, connect, type Socket } from 'node:net';
import type { FastifyInstance } from 'fastify';
import type { Test } from 'tap';

/** A client that writes bytes, and reads only when the test asks for it. It is closed when the test ends. */
export interface RawClient {
  socket: Socket;
  write(text: string): void;
  /** Sends and resets the connection at once, like a killed client. */
  sendAndReset(text: string): Promise<void>;
  /** Reads until the service closes the connection. */
  readAll(): Promise<string>;
}

export async function listen(app: FastifyInstance): Promise<number> {
  await app.listen({ port: 0, host: '127.0.0.1' });
  return (app.server.address() as AddressInfo).port;
}

export async function openRaw(t: Pick<Test, 'teardown'>, port: number): Promise<RawClient> {
  const socket = connect({ port, host: '127.0.0.1' });
  socket.on('error', () => undefined);
  t.teardown(() => void socket.destroy());
  await once(socket, 'connect');
  return {
    socket,
    write: (text) => void socket.write(text),
    async sendAndReset(text) {
      await new Promise((sent) => socket.write(text, sent));
      socket.resetAndDestroy();
    },
    async readAll() {
      const received: Buffer[] = [];
      socket.on('data', (chunk) => received.push(chunk));
      if (!socket.closed) await once(socket, 'close');
      return Buffer.concat(received).toString();
    },
  };
}

/** The text of an HTTP/1.1 request. */
export function requestText(
  method: string,
  path: string,
  { token, body, headers = {} }: { token?: string; body?: unknown; headers?: Record<string, string> } = {},
): string {
  const text = body === undefined ? '' : JSON.stringify(body);
  const all = {
    host: 'x',
    ...(token === undefined ? {} : { authorization: `Bearer ${token}` }),
    ...(body === undefined ? {} : { 'content-type': 'application/json', 'content-length': String(text.length) }),
    ...headers,
  };
  const lines = Object.entries(all).map(([name, value]) => `${name}: ${value}\r\n`);
  return `${method} ${path} HTTP/1.1\r\n${lines.join('')}\r\n${text}`;
}

/** The status codes of the replies in the text, in order. */
export function statusesIn(text: string): number[] {
  return [...text.matchAll(/HTTP\/1\.1 (\d{3}) /g)].map(([, status]) => Number(status));
}
