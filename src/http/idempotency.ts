import { createHash } from 'node:crypto';
import type { FastifyReply, FastifyRequest } from 'fastify';
import fp from 'fastify-plugin';
import { type SealBinding, SealBroken, seal, unseal } from '../crypto/seal.ts';
import { Secret } from '../crypto/secret.ts';
import type { Tx } from '../database/client.ts';
import { beginAs } from '../database/credential.ts';
import { type ActorContext, type Transactor, transact, type Work } from '../database/work.ts';
import { canonicalJson } from '../domain/canonical-json.ts';
import { Problem, validationProblem } from '../domain/errors.ts';
import type { OrganizationId } from '../domain/ids.ts';
import { accessTokenOf, actorContextOf } from './guard.ts';
import {
  type DoneRequest,
  deleteDone,
  eraseReply,
  findDone,
  insertDone,
  isForgotten,
  isPlaintextExpired,
  tryToHold,
} from './idempotency-store.ts';

declare module 'fastify' {
  interface FastifyInstance {
    /**
     * Runs `act` in one transaction and sends its outcome; with an `Idempotency-Key` once, however often the request comes.
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
    /** Whether the route obeys `Idempotency-Key`. A POST by which something is changed must say so. */
    idempotencyKey?: 'taken' | 'ignored';
  }
}

/** What a request has done, and how its reply shows it. */
export interface Outcome<View> {
  view: View;
  /** The path of what was created, which makes the reply a 201. */
  location?: string;
  etag?: string;
  /** Ids of all that was created. Needed where the view holds a plaintext: the reply is then kept for 15 minutes only. */
  plaintextOf?: readonly string[];
}

interface IdempotencyOptions {
  transactor: Transactor;
  /** Whether the organization allows plaintexts to be kept; true until the transaction ends. */
  keepsPlaintexts: (tx: Tx, organizationId: OrganizationId) => Promise<boolean>;
}

/** A request with an `Idempotency-Key`. */
interface Identity {
  /** SHA-256 of caller, organization, route and key. The key itself is not stored: it may be a secret. */
  address: Buffer;
  /** SHA-256 of query and body: what a second request must have in common with the first. */
  requestHash: Buffer;
}

interface SentReply {
  status: 200 | 201;
  headers: Record<string, string>;
  body: string;
}

/**
 * `Idempotency-Key`: the reply is serialized, sealed and stored in the transaction of the change, so there is never one
 * without the other. A second request finds it before its handler runs or, where both run at once, in its transaction.
 */
export const idempotency = fp<IdempotencyOptions>(
  async (app, { transactor, keepsPlaintexts }) => {
    const { db, keyring, clock } = transactor;

    app.addHook('onRoute', (route) => {
      if (route.config?.idempotencyKey !== 'taken') return;
      route.preHandler = [...[route.preHandler ?? []].flat(), replayEarlier];
    });

    /** Spares a retry the handler's work, such as argon2id, or a check of a URL that would fail by now. */
    async function replayEarlier(request: FastifyRequest, reply: FastifyReply): Promise<FastifyReply | undefined> {
      const identity = identityOf(request);
      const done = identity && (await findDone(db, identity.address));
      if (done === undefined) return undefined;
      const now = await beginAs(db, actorContextOf(request), clock);
      if (isForgotten(done, now)) return undefined;
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
        requireTaken(request);
        const identity = identityOf(request);
        const { earlier, now, sent } = await transact(transactor, by, async (work) => {
          const earlier = identity && (await findEarlier(work, identity));
          if (earlier !== undefined) return { earlier, now: work.now };
          const outcome = await act(work);
          const sent = serialize(reply, outcome);
          if (identity !== undefined) await keep(work, identity, outcome, sent);
          return { sent };
        });
        // The text of the view, which needs no serializing any more.
        return (sent === undefined ? replay(request, reply, earlier, now) : send(reply, sent)) as View;
      },
    );

    async function keep(work: Work, identity: Identity, outcome: Outcome<unknown>, sent: SentReply): Promise<void> {
      const { tx, now, by } = work;
      const hasPlaintext = outcome.plaintextOf !== undefined;
      const done = {
        address: identity.address,
        request_hash: identity.requestHash,
        organization_id: by.organizationId,
        has_plaintext: hasPlaintext,
        created: [...(outcome.plaintextOf ?? idOf(outcome.view))],
        created_at: now,
      };
      const isKept = !hasPlaintext || by.organizationId === null || (await keepsPlaintexts(tx, by.organizationId));
      const secret = new Secret(JSON.stringify(sent));
      const { sealed, keyringId } = isKept ? seal(keyring, secret, bindingOf(done)) : { sealed: null, keyringId: null };
      await insertDone(tx, { ...done, sealed, sealed_keyring_id: keyringId });
    }

    async function replay(request: FastifyRequest, reply: FastifyReply, done: DoneRequest, now: Date): Promise<string> {
      if (identityOf(request)?.requestHash.equals(done.request_hash) !== true) {
        throw new Problem(
          'idempotency_mismatch',
          'This Idempotency-Key belongs to a request that asked for something else.',
        );
      }
      const isExpired = isPlaintextExpired(done, now);
      if (isExpired && done.sealed !== null) await eraseReply(db, done.address);
      const sent = isExpired ? undefined : open(request, done);
      if (sent === undefined) throw replyGone(done);
      reply.header('idempotent-replayed', 'true');
      return send(reply, sent);
    }

    /** Undefined where the reply is not kept, its keyring entry is gone, or its row was changed, moved or forged. */
    function open(request: FastifyRequest, done: DoneRequest): SentReply | undefined {
      const { sealed, sealed_keyring_id: keyringId } = done;
      if (sealed === null || keyringId === null) return undefined;
      try {
        return JSON.parse(unseal(keyring, { keyringId, sealed }, bindingOf(done)).reveal());
      } catch (error) {
        if (!(error instanceof SealBroken)) throw error;
        request.log.error({ err: error }, 'A reply that was kept for its Idempotency-Key does not open.');
        return undefined;
      }
    }
  },
  { name: 'idempotency', dependencies: ['guard'] },
);

/**
 * Undefined where the request has no `Idempotency-Key`.
 * @throws Problem `validation_failed` unless it is one, of 1 to 255 printable ASCII characters
 */
function identityOf(request: FastifyRequest): Identity | undefined {
  const path = 'headers.idempotency-key';
  const key = request.headers['idempotency-key'];
  if (key === undefined) return undefined;
  if (typeof key !== 'string' || !/^[\x20-\x7e]{1,255}$/.test(key)) {
    throw validationProblem(path, 'must be 1 to 255 printable ASCII characters');
  }
  // Node joins what is repeated with a comma, which a key may have in itself.
  const names = request.raw.rawHeaders.filter((_, index) => index % 2 === 0);
  if (names.filter((name) => name.toLowerCase() === 'idempotency-key').length > 1) {
    throw validationProblem(path, 'must not be sent more than once');
  }
  const { id, actsIn } = accessTokenOf(request);
  const route = [request.method, request.routeOptions.url, request.params];
  return {
    address: sha256([id, actsIn, route, key]),
    // No body, null and {} ask for the same.
    requestHash: sha256([request.query, request.body ?? {}]),
  };
}

function sha256(value: unknown): Buffer {
  return createHash('sha256').update(canonicalJson(value)).digest();
}

/** A route that runs something once must declare it, because the OpenAPI document is made from the declaration. */
function requireTaken({ routeOptions: { url, config } }: FastifyRequest): void {
  if (config.idempotencyKey !== 'taken') throw new Error(`${url} does not declare config.idempotencyKey as taken`);
}

/** @throws Problem `idempotency_in_progress` */
async function findEarlier({ tx, now }: Work, { address }: Identity): Promise<DoneRequest | undefined> {
  if (!(await tryToHold(tx, address))) {
    throw new Problem('idempotency_in_progress', 'A request with this Idempotency-Key is being worked on.', {
      headers: { 'retry-after': '1' },
    });
  }
  const done = await findDone(tx, address);
  if (done === undefined || !isForgotten(done, now)) return done;
  await deleteDone(tx, address);
  return undefined;
}

/** All that decides whether a reply is replayed, and to which caller. */
export function bindingOf(done: Omit<DoneRequest, 'sealed' | 'sealed_keyring_id'>): SealBinding {
  return {
    purpose: 'reply',
    organizationId: done.organization_id,
    recordId: done.address.toString('hex'),
    facts: [done.request_hash.toString('hex'), done.created_at.toISOString(), String(done.has_plaintext)],
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

function idOf(view: unknown): string[] {
  const { id } = view as { id?: unknown };
  return typeof id === 'string' ? [id] : [];
}

function replyGone({ created }: DoneRequest): Problem {
  const what = created.length === 0 ? '' : ` It made or changed ${created.join(', ')}.`;
  const detail = `This request was done before, and its reply is no longer kept.${what}`;
  return new Problem('reply_gone', detail, { members: { created }, headers: { 'idempotent-replayed': 'true' } });
}
