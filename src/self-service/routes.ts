import type { FastifyPluginAsyncZod } from 'fastify-type-provider-zod';
import type { Db } from '../database/client.ts';
import { apiKeyOf, organizationContextOf, organizationOf } from '../http/guard.ts';
import { rotateRequest } from '../keys/input.ts';
import type { KeyMint } from '../keys/mint.ts';
import type { KeyViewContext } from '../keys/views.ts';
import { getOrganization } from '../organizations/store.ts';
import { revokeItself, rotateItself } from './commands.ts';
import { requireAllowedAddress, requireSelfService } from './policy.ts';
import { createdOwnKeyView, ownKeyView, toCreatedOwnKeyView, toOwnKeyView } from './views.ts';

interface SelfServiceRoutesOptions {
  db: Db;
  mint: KeyMint;
  tokenPrefix: string;
  undoWindowSeconds: number;
}

/** What the holder of a key may do with it, authenticated by the key itself. */
export const selfServiceRoutes: FastifyPluginAsyncZod<SelfServiceRoutesOptions> = async (app, options) => {
  const { db, mint, tokenPrefix, undoWindowSeconds } = options;
  const viewAt = (now: Date): KeyViewContext => ({ tokenPrefix, undoWindowSeconds, now });

  app.post(
    '/self/rotate',
    {
      config: {
        access: { role: 'api_key', admits: ['expired'] },
        idempotencyKey: 'taken',
        problems: ['self_service_disabled', 'row_full', 'conflict', 'already_deleted', 'overloaded'],
      },
      schema: {
        operationId: 'rotateSelf',
        tags: ['Self-service'],
        summary: 'Rotate the presented key: add a second key to its row',
        description:
          'As rotateKey, by the holder of the key. The key must be valid, and the request must come from one of its allowed ' +
          'addresses. The requests of one key are limited by REVEAL_LIMIT.',
        body: rotateRequest.nullish(),
        response: { 201: createdOwnKeyView },
      },
      preHandler: async (request) => requireAllowedAddress(apiKeyOf(request), request.facts.ip),
    },
    async (request, reply) => {
      app.endpointLimits.countReveal(request, reply);
      const organizationId = organizationOf(request);
      // Before the expensive hash; the command decides.
      requireSelfService(await getOrganization(db, organizationId));
      const minted = await mint.mint(organizationId);
      return app.runOnce(request, reply, organizationContextOf(request), async (work) => {
        const created = await rotateItself(work, minted, request.body ?? {}, request.facts.ip);
        return {
          view: toCreatedOwnKeyView(created, viewAt(work.now)),
          location: '/v1/self',
          plaintextOf: [created.key.id],
        };
      });
    },
  );

  app.post(
    '/self/revoke',
    {
      config: {
        access: { role: 'api_key', admits: ['deleted', 'suspended', 'expired'] },
        idempotencyKey: 'taken',
        problems: ['self_service_disabled'],
      },
      schema: {
        operationId: 'revokeSelf',
        tags: ['Self-service'],
        summary: 'Revoke the presented key: delete it',
        description:
          'The reason is owner_request. A suspended or expired key can be revoked too, from any address. An admin can restore ' +
          'the key until restorableUntil.',
        response: { 200: ownKeyView },
      },
    },
    async (request, reply) =>
      app.runOnce(request, reply, organizationContextOf(request), async (work) => ({
        view: toOwnKeyView(await revokeItself(work), viewAt(work.now)),
      })),
  );
};
