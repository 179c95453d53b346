import { randomUUID } from 'node:crypto';
import { setTimeout as delay } from 'node:timers/promises';
import { createLatchkeyClient, type LatchkeyClient } from '../../clients/node/src/client.ts';
import {
  type KeepAliveClient,
  type KeptReply,
  type KeptRequest,
  keepAliveClient,
} from '../../test/support/keep-alive-client.ts';
import { type FollowedChanges, followChanges } from './followers.ts';
import type { Ledger, RequestKind } from './ledger.ts';
import type { Installation } from './parts.ts';

export interface LoadOptions {
  verifiers: number;
  writers: number;
  followers: number;
  pauseMs: { verifiers: number; writers: number };
  /** How long `cacheSeconds` of the backend with the client is. */
  cacheSeconds: number;
}

export interface Load {
  followers: FollowedChanges[];
  /** Ends after every worker has completed its last sequence of changes. */
  stop(): Promise<void>;
}

interface NewKey {
  id: string;
  key: string;
  permission: 'read' | 'write';
}

interface NewPartner {
  id: string;
  keys: NewKey[];
}

/** Replies that permit another attempt: no reply, the gateway's, and those of an unavailable Latchkey. */
const retried = [0, 502, 503, 504];
/** After an attempt without a reply, the next one finds what the first has done. */
const inProgress = 'idempotency_in_progress';
const retryPauseMs = 100;
const steadyPartners = 5;
/** A deleted key is verified for this long, and longer until it is rejected: a killed replica must come back first. */
const probeMs = 3_000;
const probeAtMostMs = 45_000;
const rejectedForMs = 1_000;

/** Verifies, changes and follows through the balancer, and verifies deleted keys at every replica. */
export async function startLoad(parts: Installation, ledger: Ledger, options: LoadOptions): Promise<Load> {
  const { balancer, tokens, replicas } = parts;
  const stopping = new AbortController();
  const probes = new Set<Promise<void>>();
  const clients: KeepAliveClient[] = [];
  const backend = createLatchkeyClient({
    url: balancer.url,
    token: tokens.verifier,
    cacheSeconds: options.cacheSeconds,
  });

  function clientOf(url: string): KeepAliveClient {
    const client = keepAliveClient(url);
    clients.push(client);
    return client;
  }

  async function send(client: KeepAliveClient, path: string, request: KeptRequest): Promise<KeptReply> {
    return client.send(path, request).catch(() => ({ status: 0, headers: {}, body: '' }));
  }

  const verifyRequest = ({ key, permission }: NewKey, headers = {}): KeptRequest => ({
    method: 'POST',
    token: tokens.verifier,
    body: { key, permission },
    headers,
  });

  /** Repeats a change until it is acknowledged. @param isDone whether a rejection shows that an earlier attempt worked */
  async function change(
    client: KeepAliveClient,
    path: string,
    request: KeptRequest,
    isDone: (reply: KeptReply) => boolean = () => false,
  ) {
    const firstSentAtMs = performance.now();
    for (let attempt = 1; ; attempt++) {
      const sentAtMs = performance.now();
      const reply = await send(client, path, { token: tokens.admin, ...request });
      const isSuccess = reply.status === 200 || reply.status === 201 || (attempt > 1 && isDone(reply));
      note('change', sentAtMs, reply, isSuccess);
      if (isSuccess) return { reply, sentAtMs: firstSentAtMs, acknowledgedAtMs: performance.now() };
      const mayRetry = retried.includes(reply.status) || reply.body.includes(inProgress);
      if (!mayRetry) throw new Error(`${request.method} ${path}: ${reply.status} ${reply.body.slice(0, 300)}`);
      await delay(retryPauseMs);
    }
  }

  function note(kind: RequestKind, sentAtMs: number, reply: KeptReply, isSuccess: boolean): void {
    ledger.sent.push({ kind, sentAtMs, repliedAtMs: performance.now(), status: nameOf(reply), isSuccess });
  }

  const post = (body: unknown): KeptRequest => ({
    method: 'POST',
    body,
    headers: { 'idempotency-key': randomUUID() },
  });

  async function createPartner(client: KeepAliveClient) {
    const request = post({ email: `${randomUUID()}@load.example`, permissions: ['read', 'write'] });
    const { reply, ...times } = await change(client, '/v1/partners', request);
    const partner = JSON.parse(reply.body) as NewPartner;
    ledger.acknowledged.push({ action: 'partner.created', id: partner.id, ...times });
    for (const { id } of partner.keys) {
      ledger.acknowledged.push({ action: 'key.created', id, ...times });
      ledger.keys.set(id, 'active');
    }
    return { partner, request };
  }

  /** Verifies a deleted key until it has been rejected for a while. */
  async function probe(acknowledgedAtMs: number, where: string, isValid: () => Promise<boolean | undefined>) {
    const found = { acknowledgedAtMs, where, validForMs: 0, rejected: 0 };
    for (let elapsedMs = 0; elapsedMs < probeAtMostMs; ) {
      const valid = await isValid();
      elapsedMs = performance.now() - acknowledgedAtMs;
      if (valid === true) found.validForMs = elapsedMs;
      if (valid === false) found.rejected += 1;
      const isRejected = found.rejected > 0 && elapsedMs - found.validForMs > rejectedForMs;
      if (elapsedMs > probeMs && isRejected) break;
      await delay(elapsedMs < 300 ? 25 : 250);
    }
    if (found.rejected === 0) ledger.violations.push(`${where} never rejected a deleted key`);
    ledger.probes.push(found);
  }

  type Place = [where: string, isValid: (key: NewKey) => Promise<boolean | undefined>];

  /** The backend with the client verifies other keys than the replicas do: its requests renew a replica's records. */
  const backendAlone: Place[] = [['backend', (key) => isValidForBackend(backend, key)]];

  function everyReplica(): Place[] {
    return replicas.map(({ number, url }) => {
      const client = clientOf(url);
      return [`replica ${number}`, (key) => isValidAt(client, key)];
    });
  }

  async function isValidAt(client: KeepAliveClient, key: NewKey): Promise<boolean | undefined> {
    const { status, body } = await send(client, '/v1/verify', verifyRequest(key));
    return status === 200 ? (JSON.parse(body) as { valid: boolean }).valid : undefined;
  }

  async function verifySteadily(keys: readonly NewKey[], headers: Record<string, string>, kind: RequestKind) {
    const client = clientOf(balancer.url);
    for (let next = 0; !stopping.signal.aborted; next++) {
      const key = keys[next % keys.length];
      if (key === undefined) throw new Error('there is no key');
      const sentAtMs = performance.now();
      const reply = await send(client, '/v1/verify', verifyRequest(key, headers));
      const { status, body } = reply;
      const isValid = status === 200 && (JSON.parse(body) as { valid: boolean }).valid;
      note(kind, sentAtMs, reply, isValid);
      if (status === 200 && !isValid) ledger.violations.push(`a valid key was rejected: ${body.slice(0, 200)}`);
      await delay(options.pauseMs.verifiers);
    }
  }

  /** Creates a partner, changes its keys in every way, and deletes half of them. */
  async function writeSteadily(): Promise<void> {
    const client = clientOf(balancer.url);
    const everywhere = everyReplica();
    const pause = () => delay(options.pauseMs.writers);
    const changeKey = async (action: string, id: string, path: string) => {
      const { reply: _, ...times } = await change(client, `/v1/keys/${id}/${path}`, post({}));
      ledger.acknowledged.push({ action, id, ...times });
      await pause();
    };
    for (let cycle = 1; !stopping.signal.aborted; cycle++) {
      const { partner, request } = await createPartner(client);
      const [first, second] = partner.keys;
      if (first === undefined || second === undefined) throw new Error('a partner should have two keys');
      await pause();
      await changeKey('key.suspended', first.id, 'suspend');
      ledger.keys.set(first.id, 'suspended');
      await changeKey('key.resumed', first.id, 'resume');
      ledger.keys.set(first.id, 'active');
      await rotate(client, first.id);
      await pause();
      await deleteKey(client, first, everywhere);
      await pause();
      if (cycle % 2 === 0) await deleteKey(client, second, backendAlone);
      else await changeKey('key.suspended', second.id, 'suspend').then(() => ledger.keys.set(second.id, 'suspended'));
      await pause();
      const again = await change(client, '/v1/partners', request);
      ledger.replays += 1;
      const { id } = JSON.parse(again.reply.body) as NewPartner;
      if (id !== partner.id) ledger.violations.push(`a repeated request created ${id} beside ${partner.id}`);
    }
  }

  async function rotate(client: KeepAliveClient, id: string): Promise<void> {
    const { reply, ...times } = await change(client, `/v1/keys/${id}/rotate`, post({}));
    const rotated = JSON.parse(reply.body) as { id: string };
    ledger.acknowledged.push({ action: 'key.rotated', id, ...times });
    ledger.acknowledged.push({ action: 'key.created', id: rotated.id, ...times });
    ledger.keys.set(rotated.id, 'active');
  }

  /** Deletes a key that these places have in memory, and verifies it until all of them reject it. */
  async function deleteKey(client: KeepAliveClient, key: NewKey, places: Place[]): Promise<void> {
    const { id } = key;
    const before = await Promise.all(places.map(([, isValid]) => isValid(key)));
    if (before.includes(false)) ledger.violations.push(`${id} was rejected before its deletion`);
    const isDone = ({ body }: KeptReply) => body.includes('already_deleted');
    const { acknowledgedAtMs, sentAtMs } = await change(client, `/v1/keys/${id}`, { method: 'DELETE' }, isDone);
    ledger.acknowledged.push({ action: 'key.deleted', id, acknowledgedAtMs, sentAtMs });
    ledger.keys.set(id, 'deleted');
    for (const [where, isValid] of places) {
      const probing = probe(acknowledgedAtMs, where, () => isValid(key));
      probes.add(probing);
      void probing.finally(() => probes.delete(probing));
    }
  }

  const creator = clientOf(balancer.url);
  const steady: NewKey[] = [];
  for (let count = 0; count < steadyPartners; count++) {
    const { partner } = await createPartner(creator);
    steady.push(...partner.keys);
  }
  for (const [, isValid] of everyReplica()) for (const key of steady) await isValid(key);
  const followers = Array.from({ length: options.followers }, () => followChanges(balancer.url, tokens.verifier));
  const workers = [
    ...Array.from({ length: options.verifiers }, () => verifySteadily(steady, {}, 'verify')),
    verifySteadily(steady, { 'cache-control': 'no-cache' }, 'fresh'),
    ...Array.from({ length: options.writers }, () =>
      writeSteadily().catch((error: unknown) => void ledger.violations.push(String(error))),
    ),
  ];
  return {
    followers,
    async stop() {
      stopping.abort();
      await Promise.all(workers);
      await Promise.all(probes);
      for (const follower of followers) follower.close();
      await backend.close();
      for (const client of clients) client.close();
    },
  };
}

function nameOf({ status, headers }: KeptReply): string {
  if (status === 0) return 'none';
  const isLatchkeys = String(headers['content-type']).includes('json');
  return status >= 500 && !isLatchkeys ? `${status} of HAProxy` : String(status);
}

async function isValidForBackend(backend: LatchkeyClient, { key, permission }: NewKey): Promise<boolean | undefined> {
  try {
    return (await backend.verify({ key, permission })).valid;
  } catch {
    return undefined;
  }
}
