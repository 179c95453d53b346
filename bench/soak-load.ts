import { randomUUID } from 'node:crypto';
import { setTimeout as delay } from 'node:timers/promises';
import { type KeepAliveClient, type KeptReply, keepAliveClient } from '../test/support/keep-alive-client.ts';

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
  /** The pause of each worker between two requests. */
  pauseMs: { verifiers: number; others: number };
}

/** What the service has acknowledged. At the end, history and usage must contain exactly this. */
export interface SoakTally {
  requests: number;
  /** Allowed verifications. */
  allowed: number;
  /** Acknowledged changes and reveals, by action. */
  changes: Record<string, number>;
  /** Unexpected responses and errors. */
  unexpected: string[];
}

interface KnownKey {
  id: string;
  key: string;
  /** False from before a change that may end the key. */
  isValid: boolean;
}

interface SoakClient {
  call(method: string, path: string, body?: unknown, headers?: Record<string, string>): Promise<KeptReply>;
}

/** Runs the load. Each worker completes its last sequence of requests, so the tally is complete. */
export async function runSoak(target: SoakTarget, options: SoakOptions): Promise<SoakTally> {
  const tally: SoakTally = { requests: 0, allowed: 0, changes: {}, unexpected: [] };
  const liveKeys: KnownKey[] = [];
  const clients: KeepAliveClient[] = [];
  const endsAtMs = performance.now() + options.seconds * 1_000;
  const isOver = () => performance.now() > endsAtMs;

  function clientFor(token: string): SoakClient {
    const client = keepAliveClient(target.url);
    clients.push(client);
    return {
      call: (method, path, body, headers = {}) => {
        tally.requests += 1;
        return client.send(path, { method, token, ...(body === undefined ? {} : { body }), headers });
      },
    };
  }

  const workers = [
    ...Array.from({ length: options.verifiers }, () =>
      repeat(options.pauseMs.verifiers, verifyRandomKey(target.verifierToken)),
    ),
    ...Array.from({ length: options.writers }, () =>
      repeat(options.pauseMs.others, runPartnerLifecycle(target.adminToken)),
    ),
    ...Array.from({ length: options.readers }, () => repeat(options.pauseMs.others, readPages(target.adminToken))),
  ];
  await Promise.all(workers);
  for (const client of clients) client.close();
  return tally;

  async function repeat(pauseMs: number, step: () => Promise<void>): Promise<void> {
    while (!isOver()) {
      try {
        await step();
      } catch (error) {
        tally.unexpected.push(String(error));
        if (tally.unexpected.length > 100) return;
      }
      await delay(pauseMs);
    }
  }

  function expectStatus(label: string, { status, body }: KeptReply, expected: number): Record<string, unknown> {
    if (status !== expected) tally.unexpected.push(`${label}: ${status} ${body.slice(0, 300)}`);
    return JSON.parse(body) as Record<string, unknown>;
  }

  function count(action: string, times = 1): void {
    tally.changes[action] = (tally.changes[action] ?? 0) + times;
  }

  function verifyRandomKey(token: string): () => Promise<void> {
    const { call } = clientFor(token);
    return async () => {
      const chosen = liveKeys[Math.floor(Math.random() * liveKeys.length)];
      if (chosen === undefined) return;
      const random = Math.random();
      const key = random < 0.05 ? `${chosen.key.slice(0, -6)}000000` : random < 0.1 ? randomUUID() : chosen.key;
      const headers: Record<string, string> = random > 0.98 ? { 'cache-control': 'no-cache' } : {};
      const wasValid = chosen.isValid;
      const { valid } = expectStatus(
        'verify',
        await call('POST', '/v1/verify', { key, permission: 'read' }, headers),
        200,
      );
      if (valid === true) tally.allowed += 1;
      if (valid === true && key !== chosen.key) tally.unexpected.push('an invalid key was allowed');
      if (valid !== true && key === chosen.key && wasValid && chosen.isValid)
        tally.unexpected.push('a valid key was rejected');
    };
  }

  /** Creates a partner, changes its keys in every way, and deletes it. */
  function runPartnerLifecycle(token: string): () => Promise<void> {
    const { call } = clientFor(token);
    const change = async (action: string, expected: number, ...request: Parameters<SoakClient['call']>) => {
      const body = expectStatus(action, await call(...request), expected);
      count(action);
      await delay(options.pauseMs.others);
      return body;
    };
    return async () => {
      const email = `${randomUUID()}@soak.example`;
      const newPartner = { email, permissions: ['read', 'write'] };
      const idempotency = { 'idempotency-key': randomUUID() };
      const partner = await change('partner.created', 201, 'POST', '/v1/partners', newPartner, idempotency);
      const keys = partner['keys'] as Array<{ id: string; key: string; permission: string }>;
      count('key.created', 2);
      expectStatus('retry', await call('POST', '/v1/partners', newPartner, idempotency), 201);
      const read = keys.find(({ permission }) => permission === 'read');
      if (read === undefined) throw new Error('the partner has no key with read');
      const first: KnownKey = { id: read.id, key: read.key, isValid: true };
      liveKeys.push(first);
      const path = `/v1/keys/${first.id}`;
      await change('key.updated', 200, 'PATCH', path, { name: `Named ${Date.now()}` });
      await change('key.revealed', 200, 'POST', `${path}/reveal`, { reason: 'soak' });
      count('key.created');
      const rotated = await change('key.rotated', 201, 'POST', `${path}/rotate`, {});
      const second: KnownKey = { id: String(rotated['id']), key: String(rotated['key']), isValid: true };
      liveKeys.push(second);
      first.isValid = false;
      await change('key.suspended', 200, 'POST', `${path}/suspend`);
      await change('key.resumed', 200, 'POST', `${path}/resume`);
      await change('key.deleted', 200, 'DELETE', path);
      await change('key.restored', 200, 'POST', `${path}/restore`);
      first.isValid = true;
      await delay(options.pauseMs.others * 5);
      for (const key of [first, second]) key.isValid = false;
      liveKeys.splice(liveKeys.indexOf(first), 1);
      liveKeys.splice(liveKeys.indexOf(second), 1);
      await change('partner.deleted', 200, 'DELETE', `/v1/partners/${String(partner['id'])}`);
      count('key.deleted', 3);
    };
  }

  function readPages(token: string): () => Promise<void> {
    const { call } = clientFor(token);
    const paths = [
      '/v1/rows?limit=20',
      '/v1/keys?limit=20',
      '/v1/history?limit=20',
      '/v1/partners?limit=20',
      '/v1/self',
    ];
    let next = 0;
    return async () => {
      const path = paths[next % paths.length] ?? '/v1/self';
      next += 1;
      expectStatus(path, await call('GET', path), 200);
    };
  }
}
