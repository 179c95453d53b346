import type { FastifyPluginAsyncZod } from 'fastify-type-provider-zod';
import { z } from 'zod';
import { type Transactor, transact } from '../database/work.ts';
import { Problem } from '../domain/errors.ts';
import { type ClaimId, isId } from '../domain/ids.ts';
import { decodeCursor, toPage } from '../domain/page.ts';
import { organizationContextOf, organizationOf, requireRevealing } from '../http/guard.ts';
import { allowTokensInBody } from '../http/json-body.ts';
import { listOf } from '../http/list.ts';
import { exampleId, idParam, idSchema, pageOf, pageQuery } from '../http/schemas.ts';
import { newKey, rotateRequest } from '../keys/input.ts';
import type { KeyMint } from '../keys/mint.ts';
import { type ClaimSubject, createClaim } from './commands.ts';
import { cancelClaim } from './end-commands.ts';
import { mintClaim } from './mint.ts';
import { ttlRange } from './policy.ts';
import { redeemClaim } from './redeem.ts';
import { getClaim, listClaims } from './store.ts';
import {
  claimStatusSchema,
  claimView,
  createdClaimView,
  redeemedClaimView,
  showCreatedClaim,
  toClaimView,
  toRedeemedView,
} from './views.ts';

const newClaim = z
  .strictObject({
    newKey: newKey.optional().meta({ description: 'Create this key. Its plaintext is not in the reply.' }),
    rotate: rotateRequest
      .extend({ keyId: idSchema('key') })
      .meta({ id: 'ClaimedRotation', example: { keyId: exampleId('key'), expireOldAfterSeconds: 86_400 } })
      .optional()
      .meta({ description: 'Rotate this key, and hand over the new one.' }),
    keyId: idSchema('key')
      .optional()
      .meta({ description: 'Hand over this key, whose plaintext is stored. Limited and allowed like a reveal.' }),
    ttlSeconds: z
      .int()
      .min(ttlRange.leastSeconds)
      .max(ttlRange.mostSeconds)
      .default(ttlRange.defaultSeconds)
      .meta({ description: 'How long the code works.' }),
  })
  .refine((body) => [body.newKey, body.rotate, body.keyId].filter((subject) => subject !== undefined).length === 1, {
    error: 'must have exactly one of newKey, rotate and keyId',
  })
  .meta({
    id: 'NewClaim',
    example: { newKey: { partnerId: exampleId('partner'), name: 'Billing export' }, ttlSeconds: 86_400 },
  });

export interface ClaimRoutesOptions {
  transactor: Transactor;
  mint: KeyMint;
  tokenPrefix: string;
  undoWindowSeconds: number;
  /** The URL under which clients reach the service; undefined if it is not configured. */
  publicUrl: string | undefined;
}

export const claimRoutes: FastifyPluginAsyncZod<ClaimRoutesOptions> = async (app, options) => {
  const { transactor, mint, tokenPrefix, undoWindowSeconds, publicUrl } = options;
  const { db, clock } = transactor;
  const params = z.object({ claimId: idParam("The claim's id.") });

  app.get(
    '/claims',
    {
      config: { access: { role: 'admin', scope: 'read' }, problems: ['cursor_invalid'] },
      schema: {
        operationId: 'listClaims',
        tags: ['Claims'],
        summary: 'List claims, newest first',
        querystring: z.strictObject({
          ...pageQuery,
          status: claimStatusSchema.optional(),
          keyId: idSchema('key').optional(),
          partnerId: idSchema('partner').optional(),
        }),
        response: { 200: pageOf('ClaimPage', claimView) },
      },
    },
    async (request) => {
      const { limit, cursor, ...filter } = request.query;
      const now = new Date(clock.nowMs());
      const page = { limit, before: decodeCursor(listOf(request), cursor, isClaimId), now };
      const claims = await listClaims(db, organizationOf(request), filter, page);
      return toPage(
        listOf(request),
        claims,
        limit,
        (claim) => claim.id,
        (claim) => toClaimView(claim, now),
      );
    },
  );

  app.post(
    '/claims',
    {
      config: {
        access: { role: 'admin', scope: 'write' },
        idempotencyKey: 'taken',
        problems: ['row_full', 'already_deleted', 'conflict', 'reveal_disabled', 'not_found', 'overloaded'],
      },
      schema: {
        operationId: 'createClaim',
        tags: ['Claims'],
        summary: 'Create a claim, with which its holder fetches a key once',
        description:
          'The key is a new one, the successor of one that is rotated, or an existing one. Its plaintext is sent only when the ' +
          'code is redeemed. A key has one pending claim: a new one cancels the earlier one. `keyId` needs the ' +
          'scope reveal too, counts against `REVEAL_LIMIT`, and is not for operators.',
        body: newClaim,
        response: { 201: createdClaimView },
      },
    },
    async (request, reply) => {
      const { newKey, rotate, keyId, ttlSeconds } = request.body;
      if (keyId !== undefined) {
        requireRevealing(request);
        app.endpointLimits.countReveal(request, reply);
      }
      const by = organizationContextOf(request);
      const subject = await subjectOf();
      const minted = mintClaim(tokenPrefix);
      return app.runOnce(request, reply, by, async (work) => {
        const created = await createClaim(work, minted, { subject, ttlSeconds });
        return showCreatedClaim(created, { tokenPrefix, undoWindowSeconds, now: work.now }, publicUrl);
      });

      /** Minted before the transaction, so that no lock is held during hashing. */
      async function subjectOf(): Promise<ClaimSubject> {
        if (newKey !== undefined) return { newKey, minted: await mint.mint(by.organizationId) };
        if (rotate !== undefined) return { rotate, minted: await mint.mint(by.organizationId) };
        return { keyId: keyId ?? '' };
      }
    },
  );

  app.get(
    '/claims/:claimId',
    {
      config: { access: { role: 'admin', scope: 'read' } },
      schema: {
        operationId: 'getClaim',
        tags: ['Claims'],
        summary: 'Get a claim, and when and from where it was redeemed',
        params,
        response: { 200: claimView },
      },
    },
    async (request) => {
      const claim = await getClaim(db, organizationOf(request), request.params.claimId);
      return toClaimView(claim, new Date(clock.nowMs()));
    },
  );

  app.delete(
    '/claims/:claimId',
    {
      config: { access: { role: 'admin', scope: 'write' }, problems: ['conflict'] },
      schema: {
        operationId: 'cancelClaim',
        tags: ['Claims'],
        summary: 'Cancel a pending claim',
        description: 'The code no longer works. The key stays as it is.',
        params,
        response: { 200: claimView },
      },
    },
    async (request) => {
      const { claimId } = request.params;
      return transact(transactor, organizationContextOf(request), async (work) =>
        toClaimView(await cancelClaim(work, claimId), work.now),
      );
    },
  );
};

const isClaimId = (text: string): text is ClaimId => isId('claim', text);

const redeemRequest = z
  .strictObject({ code: z.string().min(1).max(200).meta({ example: 'lk_c_01k9s3v5wqe8n8x4r2m6t7yb0c_Vx0…' }) })
  .meta({ id: 'RedeemRequest', example: { code: 'lk_c_01k9s3v5wqe8n8x4r2m6t7yb0c_Vx0…' } });

/** The redemption, apart from the other routes because its body contains a credential. */
export const redeemRoutes: FastifyPluginAsyncZod<Pick<ClaimRoutesOptions, 'transactor' | 'tokenPrefix'>> = async (
  app,
  { transactor, tokenPrefix },
) => {
  allowTokensInBody(app);
  app.post(
    '/claims/redeem',
    {
      config: { access: 'public', idempotencyKey: 'ignored', problems: ['claim_gone', 'unavailable'] },
      schema: {
        operationId: 'redeemClaim',
        tags: ['Claims'],
        summary: 'Fetch the key of a claim with its code, once',
        description:
          'Latchkey records the redemption before it sends the plaintext. A code that does not work, for whatever reason, is ' +
          '410 `claim_gone`, and counts against `ADDRESS_LIMIT`. A repeated request does not return the key again.',
        body: redeemRequest,
        response: { 200: redeemedClaimView },
      },
    },
    async (request, reply) => {
      const { code } = request.body;
      reply.header('referrer-policy', 'no-referrer');
      try {
        const { facts, span } = request;
        return toRedeemedView(await redeemClaim(transactor, { code, tokenPrefix, facts, trace: span?.context }));
      } catch (error) {
        if (error instanceof Problem && error.code === 'claim_gone') app.endpointLimits.countRefusal(request, reply);
        throw error;
      }
    },
  );
};
