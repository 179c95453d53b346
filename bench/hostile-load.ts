import { once } from 'node:events';
import { connect, type Socket } from 'node:net';
import { setTimeout as delay } from 'node:timers/promises';

/** The service to attack. Without an admin token, all clients are anonymous. */
export interface HostileTarget {
  port: number;
  adminToken: string | undefined;
}

const pipelinedRequests = 1_500;
const documents = ['/openapi.json', '/docs/json', '/docs/yaml', '/metrics', '/docs/static/swagger-ui-bundle.js'];

/**
 * Runs all attacks at once: anonymous clients pipeline requests without reading, abandon connections or reset them, and an
 * admin exports and verifies history without a limit.
 * @returns sockets that are still open and whose responses are not read
 */
export async function attack(target: HostileTarget, seconds: number): Promise<Socket[]> {
  const endsAtMs = performance.now() + seconds * 1_000;
  const isRunning = () => performance.now() < endsAtMs;
  const sockets = new Set<Socket>();

  async function open(): Promise<Socket> {
    const socket = connect({ port: target.port, host: '127.0.0.1' });
    sockets.add(socket);
    socket.on('error', () => undefined);
    socket.on('close', () => sockets.delete(socket));
    await Promise.race([once(socket, 'connect'), once(socket, 'close')]).catch(() => undefined);
    return socket;
  }

  /** Repeatedly opens connections, sends `text` without reading, and closes them after `holdMs`. */
  async function floodWithoutReading(connections: number, text: string, holdMs: number): Promise<void> {
    while (isRunning()) {
      const opened = await Promise.all(Array.from({ length: connections }, open));
      for (const socket of opened) {
        socket.pause();
        socket.write(text);
      }
      await delay(Math.min(holdMs, Math.max(0, endsAtMs - performance.now())));
      for (const socket of opened) socket.destroy();
    }
  }

  async function resetAfterInvalidToken(): Promise<void> {
    while (isRunning()) {
      const socket = await open();
      socket.write(requestText('/v1/keys', 'nonsense'), () => socket.resetAndDestroy());
      await delay(20);
    }
  }

  async function requestRepeatedly(clients: number, text: string): Promise<void> {
    const runClient = async () => {
      while (isRunning()) {
        const socket = await open();
        socket.on('data', () => undefined);
        socket.end(text);
        if (!socket.closed) await Promise.race([once(socket, 'close'), delay(5_000)]).catch(() => undefined);
        socket.destroy();
        await delay(5);
      }
    };
    await Promise.all(Array.from({ length: clients }, runClient));
  }

  const { adminToken } = target;
  const closing = { connection: 'close' };
  await Promise.all([
    ...documents.map((path) => floodWithoutReading(2, requestText(path).repeat(pipelinedRequests), 5_000)),
    floodWithoutReading(300, '', 2_000),
    resetAfterInvalidToken(),
    requestRepeatedly(100, requestText('/metrics', undefined, closing)),
    ...(adminToken === undefined
      ? []
      : [
          floodWithoutReading(340, requestText('/v1/history/export', adminToken), 5_000),
          requestRepeatedly(100, requestText('/v1/history/verify?full=true', adminToken, closing)),
        ]),
  ]);
  const stalledSockets = await Promise.all(Array.from({ length: 10 }, open));
  for (const socket of stalledSockets) {
    socket.pause();
    socket.write(requestText('/docs/static/swagger-ui-bundle.js').repeat(pipelinedRequests));
  }
  for (const socket of sockets) if (!stalledSockets.includes(socket)) socket.destroy();
  return stalledSockets;
}

function requestText(path: string, token?: string, headers: Record<string, string> = {}): string {
  const all = { host: 'x', ...(token === undefined ? {} : { authorization: `Bearer ${token}` }), ...headers };
  const lines = Object.entries(all).map(([name, value]) => `${name}: ${value}\r\n`);
  return `GET ${path} HTTP/1.1\r\n${lines.join('')}\r\n`;
}
