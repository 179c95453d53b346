import type { ServerResponse } from 'node:http';
import type { Socket } from 'node:net';
import fp from 'fastify-plugin';
import { type PeriodicTask, startPeriodicTask } from '../lib/periodic-task.ts';
import { connectionOf } from './server.ts';

interface ConnectionsOptions {
  /** Aborted when clients should go elsewhere; what they have sent, and still send, is answered. */
  draining: AbortSignal;
}

const closeEveryMs = 50;

/** A connection on which nothing was asked by then does not hold up the end. */
const mayAskWithinMs = 1_000;

/**
 * Lets go of the clients without dropping what they have asked. Each reply from `draining` on carries `Connection: close`,
 * so that a client knows not to ask again on this connection; in the end those that lie idle are closed. Node by itself
 * closes what is idle at that moment and then waits for the others for as long as they are kept alive, and for those on
 * which nothing was ever asked for good. Costs a request nothing before.
 */
export const connections = fp<ConnectionsOptions>(
  async (app, { draining }) => {
    const { server } = app;
    const sockets = new Set<Socket>();
    server.on('connection', (socket: Socket) => {
      sockets.add(socket);
      socket.once('close', () => sockets.delete(socket));
    });
    let isAsked = false;
    const askToLeave = () => {
      if (isAsked) return;
      isAsked = true;
      for (const socket of sockets) sayLast(connectionOf(socket)?.lastResponse());
      server.prependListener('request', (_request, response) => sayLast(response));
    };
    draining.addEventListener('abort', askToLeave, { once: true });

    let closing: PeriodicTask | undefined;
    app.addHook('preClose', async () => {
      askToLeave();
      const startedAtMs = performance.now();
      closing = startPeriodicTask({
        everyMs: closeEveryMs,
        run() {
          server.closeIdleConnections();
          if (performance.now() - startedAtMs > mayAskWithinMs) closeSilent(sockets);
        },
      });
    });
    app.addHook('onClose', async () => {
      await closing?.close();
      draining.removeEventListener('abort', askToLeave);
    });
  },
  { name: 'connections' },
);

/** Those on which no request has arrived, or not the whole head of one: nothing was accepted there. */
function closeSilent(sockets: ReadonlySet<Socket>): void {
  for (const socket of sockets) if (connectionOf(socket)?.lastResponse() === undefined) socket.destroy();
}

function sayLast(response: ServerResponse | undefined): void {
  if (response?.headersSent === false) response.setHeader('connection', 'close');
}
