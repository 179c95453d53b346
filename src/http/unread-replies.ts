import type { FastifyReply, FastifyRequest } from 'fastify';
import fp from 'fastify-plugin';
import type { AccessRule } from './access.ts';
import { createConcurrencyLimit, onceClosed, organizationGroupOf } from './concurrency-limit.ts';

const mebibyte = 1_048_576;

/** Smaller replies are not counted: they fit into the socket buffer. */
const largeBytes = 65_536;

/**
 * Limits the bytes of large replies that clients have not read yet, in total and per organization. Otherwise a client with
 * many connections that reads nothing could exhaust the memory of the service.
 */
export const unreadReplies = fp(
  async (app) => {
    const unread = createConcurrencyLimit({
      resources: 'bytes of replies that are not read',
      totalLimit: 256 * mebibyte,
      groupLimit: 64 * mebibyte,
      retryAfterSeconds: 5,
    });
    const count = async (request: FastifyRequest, reply: FastifyReply, payload: unknown) => {
      const bytes = typeof payload === 'string' || Buffer.isBuffer(payload) ? Buffer.byteLength(payload) : 0;
      if (bytes < largeBytes || request.principal === null || reply.statusCode >= 400) return payload;
      onceClosed(reply.raw, unread.acquire(organizationGroupOf(request), bytes));
      return payload;
    };
    app.addHook('onRoute', (route) => {
      if (!mayBeLarge(route.config?.access, route.url)) return;
      route.onSend = [...[route.onSend ?? []].flat(), count];
    });
  },
  { name: 'unread-replies', dependencies: ['guard'] },
);

/** Whether replies of a route can be large. Single verifications are small and save the hook. */
function mayBeLarge(access: AccessRule | undefined, url: string): boolean {
  if (access === undefined || access === 'public') return false;
  return access.role === 'admin' || access.role === 'operator' || url.endsWith('/verify/batch');
}
