import fastify from 'fastify';
import { commonHeaders } from '../src/http/problem.ts';
import { requestLog } from '../src/http/request-log.ts';
import { serverOptions } from '../src/http/server-options.ts';
import { createLogger } from '../src/service/logger.ts';
import { authorizeResponseHeaders, verifyResponseBody } from './request-templates.ts';

// The baseline: a Fastify server with Latchkey's options and request log, whose routes parse the body and send a fixed
// response of the same size.

const logger = createLogger({ level: process.env['LOG_LEVEL'] ?? 'info', tokenPrefix: 'lk' });
const app = fastify(serverOptions({ logger, tokenPrefix: 'lk', trustProxy: false }));
app.decorateRequest('principal', null);
app.decorateRequest('span', null);
app.register(requestLog);
app.get('/readyz', async () => ({}));
app.post('/v1/verify', async (request, reply) =>
  reply.headers(commonHeaders(request.id)).type('application/json; charset=utf-8').send(verifyResponseBody),
);
app.get('/v1/authorize', async (request, reply) =>
  reply.headers(commonHeaders(request.id)).headers(authorizeResponseHeaders).send(),
);
process.on('SIGTERM', () => process.exit(0));
await app.listen({ host: '127.0.0.1', port: Number(process.env['PORT']) });
