import fp from 'fastify-plugin';

/** One line for each reply: what was asked by whom and how it ended. Never a query, a header or a body. */
export const requestLog = fp(
  async (app) => {
    app.addHook('onResponse', (request, reply, done) => {
      const facts = {
        method: request.method,
        path: request.raw.url?.split('?', 1)[0],
        status: reply.statusCode,
        durationMs: Math.round(reply.elapsedTime * 10) / 10,
        callerId: request.principal?.id,
      };
      request.log.info(facts, 'request');
      done();
    });
  },
  { name: 'request-log' },
);
