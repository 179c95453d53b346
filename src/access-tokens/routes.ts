import type { FastifyPluginAsyncZod } from 'fastify-type-provider-zod';
import { z } from 'zod';
import type { TokenCrypto } from '../credentials/mint.ts';
import { maskedToken, tokenKindOf } from '../crypto/token.ts';
import { type Transactor, transact } from '../database/work.ts';
import { type AccessTokenId, isId } from '../domain/ids.ts';
import { decodeCursor, toPage } from '../domain/page.ts';
import { creatorChainOf } from '../domain/principal.ts';
import { accessTokenOf, actorContextOf } from '../http/guard.ts';
import { listOf } from '../http/list.ts';
import {
  actorSnapshotView,
  actorView,
  emailInput,
  idParam,
  idView,
  nameInput,
  pageOf,
  pageQuery,
  roleSchema,
  scopeSchema,
  scopesInput,
  timestampInput,
  timestampView,
} from '../http/schemas.ts';
import { notAfter } from '../lib/past.ts';
import { createAccessToken, deleteAccessToken, mintAccessToken } from './commands.ts';
import { type AccessToken, getAccessToken, listAccessTokens } from './store.ts';

const fields = {
  id: idView('token'),
  organizationId: idView('org').nullable().meta({ description: 'Null for tokens of the whole installation.' }),
  role: roleSchema,
  scopes: z.array(scopeSchema).meta({ example: ['read'] }),
  name: z.string().meta({ example: 'Ada Admin' }),
  email: z.string().nullable().meta({ example: 'ada@example.com' }),
  maskedToken: z.string().meta({ example: 'lk_a_…Zq9B' }),
  createdAt: timestampView,
  createdBy: actorView,
  creatorChain: z
    .array(actorSnapshotView)
    .meta({ description: 'The chain of creators, from the root (usually the bootstrap) to createdBy.' }),
  expiresAt: timestampView.nullable(),
  lastUsedAt: timestampView.nullable().meta({
    description: 'When Latchkey last accepted the token, at most a minute late. Null: never.',
  }),
  deletedAt: timestampView.nullable(),
};

const accessTokenView = z.object(fields).meta({ id: 'AccessToken' });

const createdAccessTokenView = z
  .object({
    ...fields,
    token: z.string().meta({
      description: 'The plaintext. Store it now: Latchkey cannot reveal it again.',
      example: 'lk_v_01k9s3v5wqe8n8x4r2m6t7yb0c_Vx0…',
    }),
  })
  .meta({ id: 'CreatedAccessToken' });

const newAccessToken = z
  .strictObject({
    role: roleSchema,
    name: nameInput,
    email: emailInput.nullish().meta({ description: 'Required for an admin.' }),
    scopes: scopesInput,
    expiresAt: timestampInput.nullish(),
  })
  .meta({ id: 'NewAccessToken', example: { role: 'verifier', name: 'Checkout backend', scopes: ['read'] } });

export interface AccessTokenRoutesOptions {
  transactor: Transactor;
  crypto: TokenCrypto;
}

export const accessTokenRoutes: FastifyPluginAsyncZod<AccessTokenRoutesOptions> = async (app, options) => {
  const { transactor, crypto } = options;
  const params = z.object({ accessTokenId: idParam("The access token's id.") });
  const toView = (token: AccessToken) =>
    toAccessTokenView(token, { prefix: crypto.prefix, now: new Date(transactor.clock.nowMs()) });

  app.get(
    '/access-tokens',
    {
      config: { access: { role: 'admin', scope: 'read', installation: true }, problems: ['cursor_invalid'] },
      schema: {
        operationId: 'listAccessTokens',
        tags: ['Administration'],
        summary: 'List live access tokens, newest first',
        querystring: z.strictObject(pageQuery),
        response: { 200: pageOf('AccessTokenPage', accessTokenView) },
      },
    },
    async (request) => {
      const { limit, cursor } = request.query;
      const page = { limit, before: decodeCursor(listOf(request), cursor, isAccessTokenId) };
      const tokens = await listAccessTokens(transactor.db, accessTokenOf(request).actsIn, page);
      return toPage(listOf(request), tokens, limit, (token) => token.id, toView);
    },
  );

  app.post(
    '/access-tokens',
    {
      config: {
        access: { role: 'admin', scope: 'write', installation: true },
        idempotencyKey: 'taken',
        problems: ['overloaded'],
      },
      schema: {
        operationId: 'createAccessToken',
        tags: ['Administration'],
        summary: 'Create an access token',
        description:
          'Admins create admins and verifiers of their organization. A token can only give its own scopes. ' +
          'A verifier needs the scope read. An operator that selects no organization creates operators, and verifiers for all organizations.',
        body: newAccessToken,
        response: { 201: createdAccessTokenView },
      },
    },
    async (request, reply) => {
      const { email, expiresAt, ...rest } = request.body;
      const given = { ...rest, email: email ?? null, expiresAt: expiresAt ?? null };
      const caller = accessTokenOf(request);
      const creator = { scopes: caller.scopes, creatorChain: creatorChainOf(caller) };
      const minted = await mintAccessToken(crypto, given.role);
      return app.runOnce(request, reply, actorContextOf(request), async (work) => {
        const { accessToken, plaintext } = await createAccessToken(work, minted, creator, given);
        return {
          view: { ...toView(accessToken), token: plaintext.reveal() },
          location: `/v1/access-tokens/${accessToken.id}`,
          plaintextOf: [accessToken.id],
        };
      });
    },
  );

  app.get(
    '/access-tokens/:accessTokenId',
    {
      config: { access: { role: 'admin', scope: 'read', installation: true } },
      schema: {
        operationId: 'getAccessToken',
        tags: ['Administration'],
        summary: 'Get an access token without its plaintext',
        params,
        response: { 200: accessTokenView },
      },
    },
    async (request) => {
      const { actsIn } = accessTokenOf(request);
      return toView(await getAccessToken(transactor.db, actsIn, request.params.accessTokenId));
    },
  );

  app.delete(
    '/access-tokens/:accessTokenId',
    {
      config: { access: { role: 'admin', scope: 'write', installation: true }, problems: ['already_deleted'] },
      schema: {
        operationId: 'deleteAccessToken',
        tags: ['Administration'],
        summary: 'Delete an access token',
        description:
          'This replica rejects the token from the reply on, the others as soon as they are notified. No replica accepts a change with it any more. Only an operator can delete the last admin token with the scope write of an organization.',
        params,
        response: { 200: accessTokenView },
      },
    },
    async (request) => {
      const { accessTokenId } = request.params;
      return toView(
        await transact(transactor, actorContextOf(request), (work) => deleteAccessToken(work, accessTokenId)),
      );
    },
  );
};

const isAccessTokenId = (text: string): text is AccessTokenId => isId('token', text);

function toAccessTokenView(
  token: AccessToken,
  { prefix, now }: { prefix: string; now: Date },
): z.infer<typeof accessTokenView> {
  return {
    id: token.id,
    organizationId: token.organization_id,
    role: token.role,
    scopes: token.scopes,
    name: token.name,
    email: token.email,
    maskedToken: maskedToken(prefix, tokenKindOf[token.role], token.last_four),
    createdAt: token.created_at.toISOString(),
    createdBy: token.created_by,
    creatorChain: [...token.creator_chain],
    expiresAt: token.expires_at?.toISOString() ?? null,
    lastUsedAt: notAfter(token.last_used_at, now)?.toISOString() ?? null,
    deletedAt: token.deleted_at?.toISOString() ?? null,
  };
}
