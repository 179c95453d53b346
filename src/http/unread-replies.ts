import type { FastifyReply, FastifyRequest } from 'fastify';
import fp from 'fastify-plugin';
import type { AccessRule } from './access.ts';
import { createAtOnce, onceClosed, organizationGroupOf } from './at-once.ts';

const mebibyte = 1_048_576;

/** Smaller replies are not counted: the kernel takes them whole, and there are only so many connections. */
const largeBytes = 65_536;

/**
 * Bounds the bytes of large replies that clients have not taken yet, in all and of one organization. A page of a list may have
 * megabytes, and a client that opens many connections and reads none would make the service hold a page for each.
 */
export const unreadReplies = fp(
  async (app) => {
    const unread = createAtOnce({
      what: 'bytes of replies that are not read',
      inAll: 256 * mebibyte,
      each: 64 * mebibyte,
      retryAfterSeconds: 5,
    });
    const count = async (request: FastifyRequest, reply: FastifyReply, payload: unknown) => {
      const bytes = typeof payload === 'string' || Buffer.isBuffer(payload) ? Buffer.byteLength(payload) : 0;
      if (bytes < largeBytes || request.principal === null || reply.statusCode >= 400) return payload;
      onceClosed(reply.raw, unread.enter(organizationGroupOf(request), bytes));
      return payload;
    };
    app.addHook('onRoute', (route) => {
      if (!mayBeLarge(route.config?.access, route.url)) return;
      route.onSend = [...[route.onSend ?? []].flat(), count];
    });
  },
  { name: 'unread-replies', dependencies: ['guard'] },
);

/** One verification is small, so its path is spared the hook. */
function mayBeLarge(access: AccessRule | undefined, url: string): boolean {
  if (access === undefined || access === 'public') return false;
  return access.role === 'admin' || access.role === 'operator' || url.endsWith('/verify/batch');
}
