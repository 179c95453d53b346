import type { IncomingMessage } from 'node:http';
import fp from 'fastify-plugin';

/**
 * Zero bytes are no body, whatever type is announced: many clients name the type of a body that they leave out. Registered
 * after all that may reject a request by its headers, because a chunked body is waited for here.
 */
export const emptyBody = fp(
  async (app) => {
    app.addHook('onRequest', ({ raw, routeConfig: { access } }, _reply, done) => {
      const { headers } = raw;
      const isChunked = headers['transfer-encoding'] !== undefined;
      // Bodies that a gateway passes on are not read.
      const isOfGateway = access !== undefined && access !== 'public' && access.role === 'gateway';
      if (isOfGateway) done();
      else if (isChunked) afterFirstBytes(raw, done);
      else {
        if (!hasBody(raw)) delete headers['content-type'];
        done();
      }
    });
  },
  { name: 'empty-body', dependencies: ['strict-routes', 'guard'] },
);

/** By what the headers say; a chunked body may still be empty. */
export function hasBody({ headers }: Pick<IncomingMessage, 'headers'>): boolean {
  return headers['transfer-encoding'] !== undefined || Number(headers['content-length'] ?? 0) > 0;
}

function afterFirstBytes(raw: IncomingMessage, done: () => void): void {
  const onArrival = () => {
    raw.off('readable', onArrival).off('end', onArrival);
    const bytes: Buffer | null = raw.read();
    if (bytes !== null) raw.unshift(bytes);
    else {
      // Fastify goes by the headers.
      delete raw.headers['content-type'];
      delete raw.headers['transfer-encoding'];
    }
    done();
  };
  // Where all has arrived already, only the second comes.
  raw.on('readable', onArrival).on('end', onArrival);
}
