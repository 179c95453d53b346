import { randomUUID } from 'node:crypto';
import { setTimeout as delay } from 'node:timers/promises';
import { type KeepAliveClient, type KeptReply, keepAliveClient } from '../test/support/keep-alive-client.ts';

// A mixed load that counts its replies: at the end, history must contain exactly the acknowledged changes, and usage
// exactly the allowed verifications.

export interface SoakTarget {
  url: string;
  adminToken: string;
  verifierToken: string;
}

export interface SoakOptions {
  seconds: number;
  verifiers: number;
  writers: number;
  readers: number;
  /** What each worker waits between its requests. */
  pauseMs: { verifiers: number; others: number };
}

export interface SoakBooks {
  requests: number;
  /** Verifications that were allowed and counted, as the service must have them in the end. */
  allowed: number;
  /** Acknowledged changes, by the action that history must contain. */
  acts: Record<string, number>;
  /** Answers that should not have come. */
  unexpected: string[];
}

interface KnownKey {
  id: string;
  key: string;
  /** False as soon as somebody is about to change it. */
  isGood: boolean;
}

interface Caller {
  call(method: string, path: string, body?: unknown, headers?: Record<string, string>): Promise<KeptReply>;
}

/** Loads the service until the time is up. What a worker has begun it ends, so the books are whole. */
export async function soak(target: SoakTarget, options: SoakOptions): Promise<SoakBooks> {
  const books: SoakBooks = { requests: 0, allowed: 0, acts: {}, unexpected: [] };
  const known: KnownKey[] = [];
  const clients: KeepAliveClient[] = [];
  const endsAtMs = performance.now() + options.seconds * 1_000;
  const isOver = () => performance.now() > endsAtMs;

  function callerAs(token: string): Caller {
    const client = keepAliveClient(target.url);
    clients.push(client);
    return {
      call: (method, path, body, headers = {}) => {
        books.requests += 1;
        return client.ask(path, { method, token, ...(body === undefined ? {} : { body }), headers });
      },
    };
  }

  const workers = [
    ...Array.from({ length: options.verifiers }, () =>
      repeat(options.pauseMs.verifiers, verifyOne(target.verifierToken)),
    ),
    ...Array.from({ length: options.writers }, () => repeat(options.pauseMs.others, lifeOfAPartner(target.adminToken))),
    ...Array.from({ length: options.readers }, () => repeat(options.pauseMs.others, readAll(target.adminToken))),
  ];
  await Promise.all(workers);
  for (const client of clients) client.close();
  return books;

  async function repeat(pauseMs: number, act: () => Promise<void>): Promise<void> {
    while (!isOver()) {
      try {
        await act();
      } catch (error) {
        books.unexpected.push(String(error));
        if (books.unexpected.length > 100) return;
      }
      await delay(pauseMs);
    }
  }

  function expect(what: string, { status, body }: KeptReply, wanted: number): Record<string, unknown> {
    if (status !== wanted) books.unexpected.push(`${what}: ${status} ${body.slice(0, 300)}`);
    return JSON.parse(body) as Record<string, unknown>;
  }

  function note(action: string, times = 1): void {
    books.acts[action] = (books.acts[action] ?? 0) + times;
  }

  function verifyOne(token: string): () => Promise<void> {
    const { call } = callerAs(token);
    return async () => {
      const chosen = known[Math.floor(Math.random() * known.length)];
      if (chosen === undefined) return;
      const dice = Math.random();
      // One in ten is wrong, and one in fifty is read afresh.
      const key = dice < 0.05 ? `${chosen.key.slice(0, -6)}000000` : dice < 0.1 ? randomUUID() : chosen.key;
      const headers: Record<string, string> = dice > 0.98 ? { 'cache-control': 'no-cache' } : {};
      const wasGood = chosen.isGood;
      const { valid } = expect('verify', await call('POST', '/v1/verify', { key, permission: 'read' }, headers), 200);
      if (valid === true) books.allowed += 1;
      if (valid === true && key !== chosen.key) books.unexpected.push('a wrong key is good');
      if (valid !== true && key === chosen.key && wasGood && chosen.isGood)
        books.unexpected.push('a good key is refused');
    };
  }

  /** Everything that can happen to a partner and its keys, once. */
  function lifeOfAPartner(token: string): () => Promise<void> {
    const { call } = callerAs(token);
    const act = async (action: string, wanted: number, ...given: Parameters<Caller['call']>) => {
      const body = expect(action, await call(...given), wanted);
      note(action);
      await delay(options.pauseMs.others);
      return body;
    };
    return async () => {
      const email = `${randomUUID()}@soak.example`;
      const wish = { email, permissions: ['read', 'write'] };
      const once = { 'idempotency-key': randomUUID() };
      const partner = await act('partner.created', 201, 'POST', '/v1/partners', wish, once);
      const keys = partner['keys'] as Array<{ id: string; key: string; permission: string }>;
      note('key.created', 2);
      expect('a retry', await call('POST', '/v1/partners', wish, once), 201);
      const read = keys.find(({ permission }) => permission === 'read');
      if (read === undefined) throw new Error('a partner with read has no key for it');
      const mine: KnownKey = { id: read.id, key: read.key, isGood: true };
      known.push(mine);
      const path = `/v1/keys/${mine.id}`;
      await act('key.updated', 200, 'PATCH', path, { name: `Named ${Date.now()}` });
      await act('key.revealed', 200, 'POST', `${path}/reveal`, { reason: 'soak' });
      note('key.created');
      const rotated = await act('key.rotated', 201, 'POST', `${path}/rotate`, {});
      const second: KnownKey = { id: String(rotated['id']), key: String(rotated['key']), isGood: true };
      known.push(second);
      mine.isGood = false;
      await act('key.suspended', 200, 'POST', `${path}/suspend`);
      await act('key.resumed', 200, 'POST', `${path}/resume`);
      await act('key.deleted', 200, 'DELETE', path);
      await act('key.restored', 200, 'POST', `${path}/restore`);
      mine.isGood = true;
      await delay(options.pauseMs.others * 5);
      for (const one of [mine, second]) one.isGood = false;
      known.splice(known.indexOf(mine), 1);
      known.splice(known.indexOf(second), 1);
      await act('partner.deleted', 200, 'DELETE', `/v1/partners/${String(partner['id'])}`);
      note('key.deleted', 3);
    };
  }

  function readAll(token: string): () => Promise<void> {
    const { call } = callerAs(token);
    const paths = [
      '/v1/rows?limit=20',
      '/v1/keys?limit=20',
      '/v1/history?limit=20',
      '/v1/partners?limit=20',
      '/v1/self',
    ];
    let turn = 0;
    return async () => {
      const path = paths[turn % paths.length] ?? '/v1/self';
      turn += 1;
      expect(path, await call('GET', path), 200);
    };
  }
}
