import type { IncomingMessage } from 'node:http';
import type { FastifyRequest } from 'fastify';
import fp from 'fastify-plugin';

/** Zero bytes are no body, whatever type is announced: many clients name the type of a body that they leave out. */
export const emptyBody = fp(
  async (app) => {
    app.addHook('preParsing', (request, _reply, _payload, done) => {
      const { raw, routeConfig } = request;
      const { access } = routeConfig;
      // Bodies that a gateway passes on are not looked at.
      if (access !== undefined && access !== 'public' && access.role === 'gateway') done();
      else if (!hasBody(request)) {
        announceNone(raw);
        done();
      } else if (raw.headers['transfer-encoding'] === undefined) done();
      else afterFirstBytes(raw, done);
    });
  },
  { name: 'empty-body', dependencies: ['strict-routes'] },
);

/** By what the headers say; a chunked body may still be empty. */
export function hasBody({ headers }: Pick<FastifyRequest, 'headers'>): boolean {
  return headers['transfer-encoding'] !== undefined || Number(headers['content-length'] ?? 0) > 0;
}

/** Fastify goes by the headers. */
function announceNone({ headers }: IncomingMessage): void {
  delete headers['content-type'];
  delete headers['transfer-encoding'];
}

function afterFirstBytes(raw: IncomingMessage, done: () => void): void {
  const onArrival = () => {
    raw.off('readable', onArrival).off('end', onArrival);
    const bytes: Buffer | null = raw.read();
    if (bytes === null) announceNone(raw);
    else raw.unshift(bytes);
    done();
  };
  // Where all has arrived already, only the second comes.
  raw.on('readable', onArrival).on('end', onArrival);
}
