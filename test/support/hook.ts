import type { AddressInfo } from 'node:net';
import fastify, { type FastifyInstance, type FastifyServerOptions } from 'fastify';
import type { Test } from 'tap';
import { type ClientOptions, createLatchkeyClient, type LatchkeyClient } from '../../clients/node/src/client.ts';
import { type LatchkeyOptions, latchkey } from '../../clients/node/src/fastify.ts';
import { startService, type TestService } from './app.ts';
import { eventually } from './process.ts';

export interface ListeningService extends TestService {
  url: string;
}

/** The service on a real port. */
export async function startListening(
  t: Test,
  overrides: Parameters<typeof startService>[1] = {},
): Promise<ListeningService> {
  const service = await startService(t, overrides);
  await service.app.listen({ port: 0, host: '127.0.0.1' });
  await eventually(async () => service.verification.feed.isLive());
  return { ...service, url: `http://127.0.0.1:${(service.app.server.address() as AddressInfo).port}` };
}

/** A client that already follows changes, unless `live` is false. */
export async function startClient(
  t: Test,
  { live = true, ...options }: ClientOptions & { live?: boolean },
): Promise<LatchkeyClient> {
  const client = createLatchkeyClient(options);
  t.teardown(() => client.close());
  if (live) await eventually(async () => client.isLive());
  return client;
}

/** A backend with a few routes, protected by the hook. */
export interface Backend {
  app: FastifyInstance;
  url: string;
  /** The status of the reply to a request with this key. */
  status(key: string | undefined, path?: string, method?: string): Promise<number>;
}

export async function startBackend(
  t: Test,
  options: LatchkeyOptions,
  more: (app: FastifyInstance) => void = () => undefined,
  server: Pick<FastifyServerOptions, 'trustProxy' | 'logger'> = {},
): Promise<Backend> {
  const app = fastify({ ...server, forceCloseConnections: true });
  t.teardown(() => app.close());
  await app.register(latchkey, options);
  app.get('/hello', async (request) => ({ key: request.apiKey }));
  app.post('/hello', async () => ({ done: true }));
  more(app);
  const url = await app.listen({ port: 0, host: '127.0.0.1' });
  return {
    app,
    url,
    async status(key, path = '/hello', method = 'GET') {
      const headers: Record<string, string> = key === undefined ? {} : { authorization: `Bearer ${key}` };
      const response = await fetch(`${url}${path}`, { method, headers });
      await response.arrayBuffer();
      return response.status;
    },
  };
}
