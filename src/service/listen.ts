import type { FastifyInstance } from 'fastify';
import type { Logger } from 'pino';
import type { Config } from '../config/config.ts';
import { descriptorLimit } from '../lib/descriptor-limit.ts';

const defaultPort = 8_080;

/** File descriptors for everything but clients' connections: files, webhooks, Redis, jobs, the port for metrics. */
const reservedDescriptors = 160;

const minConnections = 16;

/**
 * Listens on the configured port.
 * @param mayMove whether another port is used if no port is configured and the default port is taken
 * @returns the URL on which the app listens
 */
export async function listen(app: FastifyInstance, config: Config, mayMove: boolean): Promise<string> {
  const host = config.HOST;
  try {
    return await app.listen({ host, port: config.PORT ?? defaultPort });
  } catch (error) {
    const isTaken = (error as NodeJS.ErrnoException).code === 'EADDRINUSE';
    if (!isTaken || !mayMove || config.PORT !== undefined) throw error;
    app.log.info(`Port ${defaultPort} is taken, so another one is used. To choose a port, set PORT.`);
    return app.listen({ host, port: 0 });
  }
}

/**
 * The maximum number of connections: MAX_CONNECTIONS, or fewer if the process may not open that many descriptors.
 * Without this limit, clients could leave no descriptors for the database and for files.
 */
export function maxConnections({ MAX_CONNECTIONS, DATABASE_POOL_SIZE }: Config, logger: Logger): number {
  const limit = descriptorLimit();
  const left = (limit ?? Number.POSITIVE_INFINITY) - reservedDescriptors - DATABASE_POOL_SIZE;
  if (left >= MAX_CONNECTIONS) return MAX_CONNECTIONS;
  const connections = Math.max(minConnections, left);
  logger.warn({ limit, connections }, 'The descriptor limit allows fewer connections than MAX_CONNECTIONS.');
  return connections;
}
