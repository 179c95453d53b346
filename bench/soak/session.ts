import { setTimeout as delay } from 'node:timers/promises';
import { type KeepAliveClient, type KeptReply, keepAliveClient } from '../../test/support/keep-alive-client.ts';

export interface SoakTarget {
  url: string;
  organizationId: string;
  adminToken: string;
  operatorToken: string;
  verifierToken: string;
}

export interface SoakOptions {
  seconds: number;
  verifiers: number;
  /** Admins that run the life of a partner. Each other story has one worker. */
  writers: number;
  /** The pause of each worker between two requests. */
  pauseMs: { verifiers: number; others: number };
}

/** What the service has acknowledged. At the end, history and usage must contain exactly this. */
export interface SoakTally {
  requests: number;
  /** Verifications, by result. */
  allowed: number;
  rateLimited: number;
  /** Acknowledged changes and reveals, by action. */
  changes: Record<string, number>;
  /** Completed rounds, by story. */
  rounds: Record<string, number>;
  /** Rejections that were expected, by status. */
  rejected: Record<string, number>;
  /** Unexpected responses and errors. */
  unexpected: string[];
}

export interface KnownKey {
  id: string;
  key: string;
  /** The partner's id in the organization's own system; verification must return it. */
  externalId?: string | undefined;
  /** False from before a change that may end the key. */
  isValid: boolean;
}

// biome-ignore lint/suspicious/noExplicitAny: members of replies, which the service's tests check against its document
export type Json = any;

type Headers = Record<string, string>;

export interface SoakCaller {
  /** Sends a request that must be answered with this status. @returns the reply's body, as JSON */
  call(expected: number, method: string, path: string, body?: unknown, headers?: Headers): Promise<Json>;
  /** As `call`, and pauses. The reply acknowledges these actions. */
  change(
    actions: string | readonly string[],
    expected: number,
    method: string,
    path: string,
    body?: unknown,
    headers?: Headers,
  ): Promise<Json>;
  send(method: string, path: string, body?: unknown, headers?: Headers): Promise<KeptReply>;
}

/** One run of the load: the tally, the keys that backends present, and the clients. */
export interface SoakSession {
  target: SoakTarget;
  tally: SoakTally;
  keys: KnownKey[];
  /** Keys with changes that each follower of `/v1/changes` must have been notified of. */
  changedKeys: Set<string>;
  /** @param token undefined: without a credential */
  callerWith(token: string | undefined): SoakCaller;
  count(action: string, times?: number): void;
  fail(text: string): void;
  pause(times?: number): Promise<void>;
  /** Backends present the key from now on. */
  present(key: Json, externalId?: string): KnownKey;
  /** Backends no longer present these keys. Call it before a change that ends them. */
  retire(...keys: KnownKey[]): void;
  close(): void;
}

/** One round of a worker. */
export type SoakStory = () => Promise<void>;

export function startSession(target: SoakTarget, { pauseMs }: Pick<SoakOptions, 'pauseMs'>): SoakSession {
  const tally: SoakTally = {
    requests: 0,
    allowed: 0,
    rateLimited: 0,
    changes: {},
    rounds: {},
    rejected: {},
    unexpected: [],
  };
  const clients: KeepAliveClient[] = [];
  const session: SoakSession = {
    target,
    tally,
    keys: [],
    changedKeys: new Set(),
    callerWith(token) {
      const client = keepAliveClient(target.url);
      clients.push(client);
      const send: SoakCaller['send'] = (method, path, body, headers = {}) => {
        tally.requests += 1;
        const credential = token === undefined ? {} : { token };
        return client.send(path, { method, ...credential, ...(body === undefined ? {} : { body }), headers });
      };
      const exchange = async (expected: number, ...request: Parameters<SoakCaller['send']>) => {
        const { status, body } = await send(...request);
        const what = `${request[0]} ${request[1]}`;
        const isExpected = status === expected;
        if (!isExpected) session.fail(`${what}: ${status} instead of ${expected}: ${body.slice(0, 300)}`);
        else if (status >= 400) tally.rejected[status] = (tally.rejected[status] ?? 0) + 1;
        return { isExpected, reply: body === '' ? null : JSON.parse(body) };
      };
      return {
        send,
        call: async (...request) => (await exchange(...request)).reply,
        async change(actions, ...request) {
          const { isExpected, reply } = await exchange(...request);
          if (isExpected) for (const action of [actions].flat()) session.count(action);
          await session.pause();
          return reply;
        },
      };
    },
    count(action, times = 1) {
      tally.changes[action] = (tally.changes[action] ?? 0) + times;
    },
    fail: (text) => void tally.unexpected.push(text),
    pause: (times = 1) => delay(pauseMs.others * times),
    present({ id, key }, externalId) {
      const known: KnownKey = { id, key, externalId, isValid: true };
      session.keys.push(known);
      return known;
    },
    retire(...keys) {
      for (const key of keys) {
        key.isValid = false;
        session.changedKeys.add(key.id);
        const index = session.keys.indexOf(key);
        if (index >= 0) session.keys.splice(index, 1);
      }
    },
    close() {
      for (const client of clients) client.close();
    },
  };
  return session;
}
