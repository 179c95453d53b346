import type { ServerResponse } from 'node:http';
import type { FastifyRequest } from 'fastify';
import { Problem } from '../domain/errors.ts';
import { accessTokenOf } from './guard.ts';

/** Limits concurrent operations, in total and per group (an organization or an address). */
export interface ConcurrencyLimit {
  /**
   * @param amount the share of the limit; default 1
   * @returns releases the share; call it when the operation has ended
   * @throws Problem `rate_limited` if the group is at its limit, `overloaded` if other groups have taken everything
   */
  acquire(group: string, amount?: number): () => void;
}

interface ConcurrencyLimitOptions {
  /** The name of the limited resources for error details, in the plural. */
  resources: string;
  totalLimit: number;
  /** Per group. In addition no group gets more than half of what the other groups leave. */
  groupLimit?: number;
  retryAfterSeconds: number;
}

/** Creates a limit. A group gets at most half of the free capacity, so that there is always room for another group. */
export function createConcurrencyLimit({
  resources,
  totalLimit,
  groupLimit = totalLimit,
  retryAfterSeconds,
}: ConcurrencyLimitOptions): ConcurrencyLimit {
  const counts = new Map<string, number>();
  let total = 0;
  const headers = { 'retry-after': String(retryAfterSeconds) };

  function release(group: string, amount: number): void {
    const left = (counts.get(group) ?? 0) - amount;
    total -= amount;
    if (left === 0) counts.delete(group);
    else counts.set(group, left);
  }

  return {
    acquire(group, amount = 1) {
      const own = counts.get(group) ?? 0;
      const allowed = Math.min(groupLimit, Math.ceil((totalLimit - (total - own)) / 2));
      if (own + amount > allowed) {
        if (own === 0)
          throw new Problem('overloaded', `There are too many concurrent ${resources}. Try again later.`, { headers });
        throw new Problem(
          'rate_limited',
          `There are already ${own} ${resources}, and at most ${allowed} may run now. Try again later.`,
          {
            headers,
          },
        );
      }
      counts.set(group, own + amount);
      total += amount;
      let isReleased = false;
      return () => {
        if (!isReleased) release(group, amount);
        isReleased = true;
      };
    },
  };
}

/** The group that a caller counts in: the organization in which it acts. */
export function organizationGroupOf(request: FastifyRequest): string {
  return accessTokenOf(request).actsIn ?? 'installation';
}

/** Calls `callback` once when the response closes, or now if it is closed. */
export function onceClosed(response: ServerResponse, callback: () => void): void {
  if (response.destroyed) callback();
  else response.once('close', callback);
}
