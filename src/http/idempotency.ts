import { createHash } from 'node:crypto';
import type { FastifyReply, FastifyRequest } from 'fastify';
import fp from 'fastify-plugin';
import { isAuthentic, type MacColumns, type MacParts, macOf } from '../crypto/mac.ts';
import { type SealBinding, SealBroken, seal, unseal } from '../crypto/seal.ts';
import { Secret } from '../crypto/secret.ts';
import type { Tx } from '../database/client.ts';
import { beginAs } from '../database/credential.ts';
import { type ActorContext, type Transactor, transact, type Work } from '../database/work.ts';
import { canonicalJson } from '../domain/canonical-json.ts';
import { Problem, validationProblem } from '../domain/errors.ts';
import type { OrganizationId } from '../domain/ids.ts';
import { actorContextOf, callerOf } from './guard.ts';
import {
  type CompletedRequest,
  deleteCompleted,
  eraseReply,
  findCompleted,
  insertCompleted,
  isOutdated,
  isPlaintextExpired,
  tryLock,
} from './idempotency-store.ts';

declare module 'fastify' {
  interface FastifyInstance {
    /**
     * Runs `act` in one transaction and sends its outcome. With an `Idempotency-Key`, repeated requests run it only once.
     * @throws Problem `idempotency_mismatch`, `idempotency_in_progress`, `reply_gone`, and what `act` throws
     */
    runOnce<By extends ActorContext, View>(
      request: FastifyRequest,
      reply: FastifyReply,
      by: By,
      act: (work: Work<By>) => Promise<Outcome<View>>,
    ): Promise<View>;
  }
  interface FastifyContextConfig {
    /** Whether the route supports `Idempotency-Key`. Required for every POST that changes something. */
    idempotencyKey?: 'taken' | 'ignored';
  }
}

/** The result of a request, as its reply shows it. */
export interface Outcome<View> {
  view: View;
  /** The path of the created resource; the reply then has the status 201. */
  location?: string;
  etag?: string;
  /** Ids of the created resources. Required if the view contains a plaintext; the reply is then stored for 15 minutes only. */
  plaintextOf?: readonly string[];
}

interface IdempotencyOptions {
  transactor: Transactor;
  /** Whether the organization allows stored plaintexts. The answer holds until the transaction ends. */
  keepsPlaintexts: (tx: Tx, organizationId: OrganizationId) => Promise<boolean>;
}

/** A request with an `Idempotency-Key`. */
interface Identity {
  /** SHA-256 of caller, organization, route and key. The key itself is not stored: it may be a secret. */
  address: Buffer;
  /** Query and body in canonical form, which a repeated request must match. */
  request: string;
}

interface SentReply {
  status: 200 | 201;
  headers: Record<string, string>;
  body: string;
}

/**
 * Supports `Idempotency-Key`: the transaction of a change also stores its sealed reply, so neither exists without the other.
 * A repeated request finds the reply before its handler runs or, if both run concurrently, in its transaction.
 */
export const idempotency = fp<IdempotencyOptions>(
  async (app, { transactor, keepsPlaintexts }) => {
    const { db, keyring, clock } = transactor;

    app.addHook('onRoute', (route) => {
      if (route.config?.idempotencyKey !== 'taken') return;
      route.preHandler = [...[route.preHandler ?? []].flat(), replayEarlier];
    });

    /** Replays before the handler runs, so that a retry repeats no expensive work and no check that might fail now. */
    async function replayEarlier(request: FastifyRequest, reply: FastifyReply): Promise<FastifyReply | undefined> {
      const identity = identityOf(request);
      const done = identity && (await findCompleted(db, identity.address));
      if (done === undefined) return undefined;
      const now = await beginAs(db, actorContextOf(request), clock);
      if (isOutdated(done, now)) return undefined;
      return reply.send(await replay(request, reply, done, now));
    }

    app.decorate(
      'runOnce',
      async <By extends ActorContext, View>(
        request: FastifyRequest,
        reply: FastifyReply,
        by: By,
        act: (work: Work<By>) => Promise<Outcome<View>>,
      ) => {
        requireDeclared(request);
        const identity = identityOf(request);
        const { earlier, now, sent } = await transact(transactor, by, async (work) => {
          const earlier = identity && (await findEarlier(work, identity));
          if (earlier !== undefined) return { earlier, now: work.now };
          const outcome = await act(work);
          const sent = serialize(reply, outcome);
          if (identity !== undefined) await storeReply(work, identity, outcome, sent);
          return { sent };
        });
        // The reply is already serialized.
        return (sent === undefined ? replay(request, reply, earlier, now) : send(reply, sent)) as View;
      },
    );

    async function storeReply(
      work: Work,
      identity: Identity,
      outcome: Outcome<unknown>,
      sent: SentReply,
    ): Promise<void> {
      const { tx, now, by } = work;
      const hasPlaintext = outcome.plaintextOf !== undefined;
      const done = {
        address: identity.address,
        ...requestMacOf(macOf(keyring.primary, requestParts(identity))),
        organization_id: by.organizationId,
        has_plaintext: hasPlaintext,
        created: [...(outcome.plaintextOf ?? idsOf(outcome.view))],
        created_at: now,
      };
      const isKept = !hasPlaintext || by.organizationId === null || (await keepsPlaintexts(tx, by.organizationId));
      const secret = new Secret(JSON.stringify(sent));
      const { sealed, keyringId } = isKept ? seal(keyring, secret, bindingOf(done)) : { sealed: null, keyringId: null };
      await insertCompleted(tx, { ...done, sealed, sealed_keyring_id: keyringId });
    }

    async function replay(
      request: FastifyRequest,
      reply: FastifyReply,
      done: CompletedRequest,
      now: Date,
    ): Promise<string> {
      if (!isSameRequest(request, done)) {
        throw new Problem(
          'idempotency_mismatch',
          'This Idempotency-Key was used for a different request. Use a new key.',
        );
      }
      const isExpired = isPlaintextExpired(done, now);
      if (isExpired && done.sealed !== null) await eraseReply(db, done.address);
      const sent = isExpired ? undefined : unsealReply(request, done);
      if (sent === undefined) throw replyGone(done);
      reply.header('idempotent-replayed', 'true');
      return send(reply, sent);
    }

    /** Without the keyring entry requests cannot be compared. Then the reply cannot be unsealed either. */
    function isSameRequest(request: FastifyRequest, done: CompletedRequest): boolean {
      const { request_mac: mac, request_mac_keyring_id: entryId } = done;
      const identity = identityOf(request);
      if (identity === undefined) return false;
      return (
        keyring.get(entryId) === undefined ||
        isAuthentic(keyring, { mac, mac_keyring_id: entryId }, requestParts(identity))
      );
    }

    /** Undefined if the reply is not stored, its keyring entry is missing, or its row was changed, moved or forged. */
    function unsealReply(request: FastifyRequest, done: CompletedRequest): SentReply | undefined {
      const { sealed, sealed_keyring_id: keyringId } = done;
      if (sealed === null || keyringId === null) return undefined;
      try {
        return JSON.parse(unseal(keyring, { keyringId, sealed }, bindingOf(done)).reveal());
      } catch (error) {
        if (!(error instanceof SealBroken)) throw error;
        request.log.error(
          { err: error },
          'A stored reply to a request with an Idempotency-Key cannot be unsealed: its row was changed, or its keyring entry is missing.',
        );
        return undefined;
      }
    }
  },
  { name: 'idempotency', dependencies: ['guard'] },
);

/**
 * Undefined if the request has no `Idempotency-Key`.
 * @throws Problem `validation_failed` unless there is exactly one, of 1 to 255 printable ASCII characters
 */
function identityOf(request: FastifyRequest): Identity | undefined {
  const path = 'headers.idempotency-key';
  const key = request.headers['idempotency-key'];
  if (key === undefined) return undefined;
  if (typeof key !== 'string' || !/^[\x20-\x7e]{1,255}$/.test(key)) {
    throw validationProblem(path, 'must be 1 to 255 printable ASCII characters');
  }
  // Node joins repeated headers with a comma, which a key may also contain.
  const names = request.raw.rawHeaders.filter((_, index) => index % 2 === 0);
  if (names.filter((name) => name.toLowerCase() === 'idempotency-key').length > 1) {
    throw validationProblem(path, 'must not be sent more than once');
  }
  const { principal, actsIn } = callerOf(request);
  const route = [request.method, request.routeOptions.url, request.params];
  return {
    address: sha256([principal.id, actsIn, route, key]),
    // No body, null and {} are equivalent.
    request: canonicalJson([request.query, request.body ?? {}]),
  };
}

/** A MAC and not a hash: a body may contain the plaintext or the SHA-256 of an imported key. */
function requestParts({ request }: Identity): MacParts {
  return ['request', request];
}

function requestMacOf({ mac, mac_keyring_id }: MacColumns) {
  return { request_mac: mac, request_mac_keyring_id: mac_keyring_id };
}

function sha256(value: unknown): Buffer {
  return createHash('sha256').update(canonicalJson(value)).digest();
}

/** Fails if the route does not declare its support: the OpenAPI document is generated from the declaration. */
function requireDeclared({ routeOptions: { url, config } }: FastifyRequest): void {
  if (config.idempotencyKey !== 'taken') throw new Error(`${url} does not declare config.idempotencyKey as taken`);
}

/** @throws Problem `idempotency_in_progress` */
async function findEarlier({ tx, now }: Work, { address }: Identity): Promise<CompletedRequest | undefined> {
  if (!(await tryLock(tx, address))) {
    throw new Problem(
      'idempotency_in_progress',
      'A request with this Idempotency-Key is still running. Try again later.',
      {
        headers: { 'retry-after': '1' },
      },
    );
  }
  const done = await findCompleted(tx, address);
  if (done === undefined || !isOutdated(done, now)) return done;
  await deleteCompleted(tx, address);
  return undefined;
}

/** Binds a sealed reply to everything that decides whether it is replayed. */
export function bindingOf(done: Omit<CompletedRequest, 'sealed' | 'sealed_keyring_id'>): SealBinding {
  return {
    purpose: 'reply',
    organizationId: done.organization_id,
    recordId: done.address.toString('hex'),
    facts: [
      done.request_mac.toString('hex'),
      done.request_mac_keyring_id,
      done.created_at.toISOString(),
      String(done.has_plaintext),
    ],
  };
}

function serialize(reply: FastifyReply, { view, location, etag }: Outcome<unknown>): SentReply {
  const status = location === undefined ? 200 : 201;
  const headers = { ...(location === undefined ? {} : { location }), ...(etag === undefined ? {} : { etag }) };
  return { status, headers, body: String(reply.serializeInput(view as Record<string, unknown>, String(status))) };
}

function send(reply: FastifyReply, { status, headers, body }: SentReply): string {
  reply.code(status).headers(headers).type('application/json; charset=utf-8');
  return body;
}

/** The id of the resource in a reply, or the ids of a list of them. */
function idsOf(view: unknown): string[] {
  const { id, data } = view as { id?: unknown; data?: unknown };
  if (Array.isArray(data)) return data.flatMap(idsOf);
  return typeof id === 'string' ? [id] : [];
}

function replyGone({ created }: CompletedRequest): Problem {
  const what = created.length === 0 ? '' : ` It created or changed ${created.join(', ')}.`;
  const detail = `This request was completed before, and its reply is no longer stored.${what}`;
  return new Problem('reply_gone', detail, { members: { created }, headers: { 'idempotent-replayed': 'true' } });
}
