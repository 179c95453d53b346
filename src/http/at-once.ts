import type { ServerResponse } from 'node:http';
import type { FastifyRequest } from 'fastify';
import { Problem } from '../domain/errors.ts';
import { accessTokenOf } from './guard.ts';

/** Bounds what goes on at once, in all and of one group: an organization, or an address. */
export interface AtOnce {
  /**
   * @param amount how much of it; 1 where things are counted
   * @returns to be called when it has ended; more often does no harm
   * @throws Problem `rate_limited` where the group has as many as it may, `overloaded` where all are taken by others
   */
  enter(group: string, amount?: number): () => void;
}

interface AtOnceOptions {
  /** What is bounded, in the plural. */
  what: string;
  inAll: number;
  /** Of one group. Beside it no group ever has more than half of what the others leave. */
  each?: number;
  retryAfterSeconds: number;
}

/** The half leaves room for every newcomer: however much the groups before it ask for, one of them never gets the rest. */
export function createAtOnce({ what, inAll, each = inAll, retryAfterSeconds }: AtOnceOptions): AtOnce {
  const counts = new Map<string, number>();
  let total = 0;
  const headers = { 'retry-after': String(retryAfterSeconds) };

  function leave(group: string, amount: number): void {
    const left = (counts.get(group) ?? 0) - amount;
    total -= amount;
    if (left === 0) counts.delete(group);
    else counts.set(group, left);
  }

  return {
    enter(group, amount = 1) {
      const own = counts.get(group) ?? 0;
      const allowed = Math.min(each, Math.ceil((inAll - (total - own)) / 2));
      if (own + amount > allowed) {
        if (own === 0) throw new Problem('overloaded', `There are too many ${what} at once.`, { headers });
        throw new Problem(
          'rate_limited',
          `There are ${own} ${what} already, and now no more than ${allowed} at once.`,
          {
            headers,
          },
        );
      }
      counts.set(group, own + amount);
      total += amount;
      let isOver = false;
      return () => {
        if (!isOver) leave(group, amount);
        isOver = true;
      };
    },
  };
}

/** As which group a caller is counted: the organization in which it acts. */
export function organizationGroupOf(request: FastifyRequest): string {
  return accessTokenOf(request).actsIn ?? 'installation';
}

/** Calls once the response is over, also where its connection is gone already. */
export function onceClosed(response: ServerResponse, act: () => void): void {
  if (response.destroyed) act();
  else response.once('close', act);
}
