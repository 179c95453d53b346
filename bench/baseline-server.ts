import fastify from 'fastify';
import { commonHeaders } from '../src/http/problem.ts';
import { requestLog } from '../src/http/request-log.ts';
import { serverOptions } from '../src/http/server-options.ts';
import { createLogger } from '../src/service/logger.ts';
import { authorizeAnswer, verifyAnswer } from './request-templates.ts';

// What Latchkey is measured against: a Fastify server with the same options and the same line in the log for each
// reply, and routes that send the same bytes. The body is parsed, by Fastify's own parser, and nothing is looked at.

const logger = createLogger({ level: process.env['LOG_LEVEL'] ?? 'info', tokenPrefix: 'lk' });
const app = fastify(serverOptions({ logger, tokenPrefix: 'lk', trustProxy: false }));
app.decorateRequest('principal', null);
app.decorateRequest('span', null);
app.register(requestLog);
app.get('/readyz', async () => ({}));
app.post('/v1/verify', async (request, reply) =>
  reply.headers(commonHeaders(request.id)).type('application/json; charset=utf-8').send(verifyAnswer),
);
app.get('/v1/authorize', async (request, reply) =>
  reply.headers(commonHeaders(request.id)).headers(authorizeAnswer).send(),
);
process.on('SIGTERM', () => process.exit(0));
await app.listen({ host: '127.0.0.1', port: Number(process.env['PORT']) });
