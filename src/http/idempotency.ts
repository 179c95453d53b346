import type { FastifyReply, FastifyRequest } from 'fastify';
import fp from 'fastify-plugin';
import { Problem } from '../core/errors.ts';
import { isId, type KeyId, type OrganizationId } from '../core/ids.ts';
import type { Secret } from '../crypto/secret.ts';
import { beginAs } from '../db/credential.ts';
import type { KeptReply } from '../db/schema.ts';
import type { Doer, OrganizationDoer, Transactor, Work } from '../db/work.ts';
import { minuteMs } from '../lib/durations.ts';
import { accessTokenOf, doerOf, organizationDoerOf } from './guard.ts';
import { type Claim, claimOf } from './idempotency-key.ts';
import { deleteAnswer, findAnswer, insertAnswer, isTooOld, type KeptAnswer, tryToHold } from './idempotency-store.ts';
import { ownerOf, type PlacedSecret, putTogether, type Sent, type Shown, takeApart } from './kept-reply.ts';

declare module 'fastify' {
  interface FastifyInstance {
    /**
     * Does what a request asks for and answers it; with an `Idempotency-Key` once, however often it is asked.
     * @throws Problem `idempotency_mismatch`, `idempotency_in_progress`, `rate_limited`, and what `run` throws
     */
    runOnce<Result, View>(
      request: FastifyRequest,
      reply: FastifyReply,
      act: Act<Result, View>,
    ): Promise<Sent<NoInfer<View>>>;
  }
  interface FastifyContextConfig {
    /** Whether the route obeys `Idempotency-Key`. A POST by which something is changed must say so. */
    idempotencyKey?: 'taken' | 'ignored';
  }
}

export interface Act<Result, View> {
  /** One command, so one transaction, and what that gives back. */
  run: (transactor: Transactor<Result>) => Promise<Result>;
  /** Run inside the transaction. */
  show: (result: Result, now: Date) => Shown<View>;
}

/** Opens the plaintexts of keys for a second time, by the rules of reveal. */
export interface Reopener {
  /** Those of the keys that may be looked at now. */
  findOpenable(organizationId: OrganizationId, ids: readonly KeyId[]): Promise<KeyId[]>;
  /** Records the look, and opens when the record is committed. Undefined where the key may no longer be looked at. */
  open(by: OrganizationDoer, id: KeyId): Promise<Secret | undefined>;
}

interface IdempotencyOptions {
  transactor: Transactor;
  reopener: Reopener;
}

/** How long the plaintexts of a reply are opened again: enough for a retry, and too short for a second way to look. */
const reopenedMs = 15 * minuteMs;

/** A request that was answered before, found at a time. */
interface Earlier {
  answer: KeptAnswer;
  now: Date;
}

/** Ends a transaction that is about to do again what another one has done. */
class AlreadyDone extends Error {
  override readonly name = 'AlreadyDone';
  readonly earlier: Earlier;

  constructor(earlier: Earlier) {
    super('the request was answered before');
    this.earlier = earlier;
  }
}

/**
 * `Idempotency-Key`: the reply is kept in the transaction of the change, so there is never one without the other.
 * Plaintexts are not kept; those of keys are opened again for a while.
 */
export const idempotency = fp<IdempotencyOptions>(
  async (app, { transactor, reopener }) => {
    app.decorate('runOnce', async (request, reply, { run, show }) => {
      requireTaken(request);
      const claim = claimOf(request);
      // Before the command, so that a retry costs no argon2id; once more in its transaction, where nothing can come between.
      const earlier = claim === undefined ? undefined : await findEarlier(transactor, doerOf(request), claim);
      if (claim !== undefined && earlier !== undefined) return replay(request, reply, claim, earlier);
      const done: { reply?: ReturnType<typeof takeApart> } = {};
      try {
        await run({
          ...transactor,
          ...(claim === undefined ? {} : { onBegin: (work) => begin(work, claim) }),
          onDone: async (work, result) => {
            done.reply = takeApart(show(result, work.now));
            if (claim !== undefined) await keep(work, claim, done.reply.kept);
          },
        });
      } catch (error) {
        if (claim === undefined || !(error instanceof AlreadyDone)) throw error;
        return replay(request, reply, claim, error.earlier);
      }
      if (done.reply === undefined) throw new Error('the command has run no transaction');
      return send(reply, done.reply.kept, done.reply.secrets);
    });

    async function replay<View>(
      request: FastifyRequest,
      reply: FastifyReply,
      claim: Claim,
      { answer, now }: Earlier,
    ): Promise<Sent<View>> {
      if (!answer.request_hash.equals(claim.requestHash)) {
        throw new Problem(
          'idempotency_mismatch',
          'This Idempotency-Key belongs to a request that asked for something else.',
        );
      }
      const isRecent = now.getTime() - answer.created_at.getTime() < reopenedMs;
      const secrets = isRecent ? await reopen(request, reply, answer.reply) : [];
      if (secrets.length < answer.reply.secrets.length) throw replyGone(answer.reply);
      reply.header('idempotent-replayed', 'true');
      return send<View>(reply, answer.reply, secrets);
    }

    /** Whether this admin's limit allows so many looks. */
    function mayLook(request: FastifyRequest, reply: FastifyReply, looks: number): boolean {
      try {
        for (let look = 0; look < looks; look++) app.endpointLimits.countReveal(request, reply);
        return true;
      } catch (error) {
        if (error instanceof Problem && error.code === 'rate_limited') return false;
        throw error;
      }
    }

    /** Operators may not look, so what they have created is not opened to them again either. */
    async function reopen(request: FastifyRequest, reply: FastifyReply, kept: KeptReply): Promise<PlacedSecret[]> {
      if (accessTokenOf(request).role !== 'admin') return [];
      const by = organizationDoerOf(request);
      const places = kept.secrets.map((path) => ({ path, id: ownerOf(kept.body, path) }));
      const openable = await reopener.findOpenable(by.organizationId, places.map(({ id }) => id).filter(isKeyId));
      if (openable.length < places.length) return [];
      if (!mayLook(request, reply, openable.length)) return [];
      const opened: PlacedSecret[] = [];
      for (const { path, id } of places) {
        const secret = isKeyId(id) ? await reopener.open(by, id) : undefined;
        if (secret !== undefined) opened.push({ path, secret });
      }
      return opened;
    }
  },
  { name: 'idempotency', dependencies: ['endpoint-limits', 'guard'] },
);

const isKeyId = (id: string | undefined): id is KeyId => id !== undefined && isId('key', id);

/** A reply without its plaintext would not be the one that its route promises. It names what can be looked up instead. */
function replyGone({ body, secrets }: KeptReply): Problem {
  const ids = [['id'], ...secrets].map((path) => ownerOf(body, path)).filter((id) => id !== undefined);
  const created = [...new Set(ids)];
  const detail = `This request was done before, and its plaintext can no longer be shown. It made ${created.join(', ')}.`;
  return new Problem('reply_gone', detail, { members: { created }, headers: { 'idempotent-replayed': 'true' } });
}

/** Who runs something once must have said so: the OpenAPI document is made from the declaration. */
function requireTaken({ routeOptions: { url, config } }: FastifyRequest): void {
  if (config.idempotencyKey !== 'taken') throw new Error(`${url} does not declare config.idempotencyKey as taken`);
}

/** @throws Problem `unauthorized` where the caller's access token was deleted meanwhile */
async function findEarlier({ db, clock }: Transactor, by: Doer, { address }: Claim): Promise<Earlier | undefined> {
  const answer = await findAnswer(db, address);
  if (answer === undefined) return undefined;
  const now = await beginAs(db, by, clock);
  return isTooOld(answer, now) ? undefined : { answer, now };
}

/** @throws AlreadyDone, Problem `idempotency_in_progress` */
async function begin({ tx, now }: Work, { address }: Claim): Promise<void> {
  if (!(await tryToHold(tx, address))) {
    throw new Problem('idempotency_in_progress', 'A request with this Idempotency-Key is being worked on.', {
      headers: { 'retry-after': '1' },
    });
  }
  const answer = await findAnswer(tx, address);
  if (answer === undefined) return;
  if (!isTooOld(answer, now)) throw new AlreadyDone({ answer, now });
  await deleteAnswer(tx, address);
}

function keep({ tx, now }: Work, { address, requestHash }: Claim, reply: KeptReply): Promise<void> {
  return insertAnswer(tx, address, { request_hash: requestHash, reply, created_at: now });
}

function send<View>(reply: FastifyReply, kept: KeptReply, secrets: readonly PlacedSecret[]): Sent<View> {
  reply.code(kept.status).headers(kept.headers);
  return putTogether(kept.body, secrets) as Sent<View>;
}
