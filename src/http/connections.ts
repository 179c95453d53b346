import type { ServerResponse } from 'node:http';
import type { Socket } from 'node:net';
import fp from 'fastify-plugin';
import { type PeriodicTask, startPeriodicTask } from '../lib/periodic-task.ts';
import { connectionOf } from './server.ts';

interface ConnectionsOptions {
  /** Aborted when the service begins to stop. Requests are still answered after that. */
  draining: AbortSignal;
}

const closeEveryMs = 50;

/** On shutdown, a connection without a request is closed after this time. */
const firstRequestTimeoutMs = 1_000;

/**
 * Closes client connections on shutdown without dropping requests: after `draining` every reply carries `Connection: close`,
 * and idle connections are closed repeatedly. Node closes idle connections only once, and then waits for keep-alive
 * timeouts and, without end, for connections that never sent a request.
 */
export const connections = fp<ConnectionsOptions>(
  async (app, { draining }) => {
    const { server } = app;
    const sockets = new Set<Socket>();
    server.on('connection', (socket: Socket) => {
      sockets.add(socket);
      socket.once('close', () => sockets.delete(socket));
    });
    let isClosing = false;
    const startClosing = () => {
      if (isClosing) return;
      isClosing = true;
      for (const socket of sockets) closeAfterResponse(connectionOf(socket)?.lastResponse());
      server.prependListener('request', (_request, response) => closeAfterResponse(response));
    };
    draining.addEventListener('abort', startClosing, { once: true });

    let closing: PeriodicTask | undefined;
    app.addHook('preClose', async () => {
      startClosing();
      const startedAtMs = performance.now();
      closing = startPeriodicTask({
        everyMs: closeEveryMs,
        run() {
          server.closeIdleConnections();
          if (performance.now() - startedAtMs > firstRequestTimeoutMs) destroyUnusedSockets(sockets);
        },
      });
    });
    app.addHook('onClose', async () => {
      await closing?.close();
      draining.removeEventListener('abort', startClosing);
    });
  },
  { name: 'connections' },
);

/** Destroys connections on which no complete request head has arrived. */
function destroyUnusedSockets(sockets: ReadonlySet<Socket>): void {
  for (const socket of sockets) if (connectionOf(socket)?.lastResponse() === undefined) socket.destroy();
}

function closeAfterResponse(response: ServerResponse | undefined): void {
  if (response?.headersSent === false) response.setHeader('connection', 'close');
}
