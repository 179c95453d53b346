import type { IncomingMessage } from 'node:http';
import fp from 'fastify-plugin';
import { isForGateways } from './access.ts';

/**
 * Treats zero bytes as no body, because many clients send a content type without a body. Waits for the first bytes of a
 * chunked body, so it is registered after every hook that rejects requests by their headers.
 */
export const emptyBody = fp(
  async (app) => {
    app.addHook('onRequest', ({ raw, routeConfig: { access } }, _reply, done) => {
      const { headers } = raw;
      const isChunked = headers['transfer-encoding'] !== undefined;
      // Bodies that a gateway passes on are not read.
      if (isForGateways(access)) done();
      else if (isChunked) afterFirstBytes(raw, done);
      else {
        if (!hasBody(raw)) delete headers['content-type'];
        done();
      }
    });
  },
  { name: 'empty-body', dependencies: ['strict-routes', 'guard'] },
);

/** Whether the headers announce a body. A chunked body may still be empty. */
export function hasBody({ headers }: Pick<IncomingMessage, 'headers'>): boolean {
  return headers['transfer-encoding'] !== undefined || Number(headers['content-length'] ?? 0) > 0;
}

function afterFirstBytes(raw: IncomingMessage, done: () => void): void {
  const onArrival = () => {
    raw.off('readable', onArrival).off('end', onArrival);
    const bytes: Buffer | null = raw.read();
    if (bytes !== null) raw.unshift(bytes);
    else {
      // Fastify decides by the headers whether there is a body.
      delete raw.headers['content-type'];
      delete raw.headers['transfer-encoding'];
    }
    done();
  };
  // If the request has ended already, only `end` is emitted.
  raw.on('readable', onArrival).on('end', onArrival);
}
