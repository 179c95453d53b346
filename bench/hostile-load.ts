import { once } from 'node:events';
import { connect, type Socket } from 'node:net';
import { setTimeout as delay } from 'node:timers/promises';

/** The service that is attacked, and the token of an admin who takes part; undefined: only clients without a credential. */
export interface HostileTarget {
  port: number;
  adminToken: string | undefined;
}

const pipelined = 1_500;
const documents = ['/openapi.json', '/docs/json', '/docs/yaml', '/metrics', '/docs/static/swagger-ui-bundle.js'];

/**
 * Everything at once that has stopped or slowed the service before, for a time: clients without a credential that
 * pipeline and read nothing, open connections and leave them, or reset them; and one admin who exports and verifies
 * without measure.
 * @returns what is still open, with replies that nobody reads
 */
export async function attack(target: HostileTarget, seconds: number): Promise<Socket[]> {
  const endsAtMs = performance.now() + seconds * 1_000;
  const goesOn = () => performance.now() < endsAtMs;
  const sockets = new Set<Socket>();

  async function open(): Promise<Socket> {
    const socket = connect({ port: target.port, host: '127.0.0.1' });
    sockets.add(socket);
    socket.on('error', () => undefined);
    socket.on('close', () => sockets.delete(socket));
    await Promise.race([once(socket, 'connect'), once(socket, 'close')]).catch(() => undefined);
    return socket;
  }

  /** Opens so many, has them send `text` and read nothing, and closes them after `holdMs`; again and again. */
  async function flood(connections: number, text: string, holdMs: number): Promise<void> {
    while (goesOn()) {
      const opened = await Promise.all(Array.from({ length: connections }, open));
      for (const socket of opened) {
        socket.pause();
        socket.write(text);
      }
      await delay(Math.min(holdMs, Math.max(0, endsAtMs - performance.now())));
      for (const socket of opened) socket.destroy();
    }
  }

  async function resetAfterBadToken(): Promise<void> {
    while (goesOn()) {
      const socket = await open();
      socket.write(requestText('/v1/keys', 'nonsense'), () => socket.resetAndDestroy());
      await delay(20);
    }
  }

  /** So many clients that each ask again as soon as they are answered. */
  async function askOn(clients: number, text: string): Promise<void> {
    const one = async () => {
      while (goesOn()) {
        const socket = await open();
        socket.on('data', () => undefined);
        socket.end(text);
        if (!socket.closed) await Promise.race([once(socket, 'close'), delay(5_000)]).catch(() => undefined);
        socket.destroy();
        await delay(5);
      }
    };
    await Promise.all(Array.from({ length: clients }, one));
  }

  const { adminToken } = target;
  const closing = { connection: 'close' };
  await Promise.all([
    ...documents.map((path) => flood(2, requestText(path).repeat(pipelined), 5_000)),
    flood(300, '', 2_000),
    resetAfterBadToken(),
    askOn(100, requestText('/metrics', undefined, closing)),
    ...(adminToken === undefined
      ? []
      : [
          flood(340, requestText('/v1/history/export', adminToken), 5_000),
          askOn(100, requestText('/v1/history/verify', adminToken, closing)),
        ]),
  ]);
  const left = await Promise.all(Array.from({ length: 10 }, open));
  for (const socket of left) {
    socket.pause();
    socket.write(requestText('/docs/static/swagger-ui-bundle.js').repeat(pipelined));
  }
  for (const socket of sockets) if (!left.includes(socket)) socket.destroy();
  return left;
}

function requestText(path: string, token?: string, headers: Record<string, string> = {}): string {
  const all = { host: 'x', ...(token === undefined ? {} : { authorization: `Bearer ${token}` }), ...headers };
  const lines = Object.entries(all).map(([name, value]) => `${name}: ${value}\r\n`);
  return `GET ${path} HTTP/1.1\r\n${lines.join('')}\r\n`;
}
