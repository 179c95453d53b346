import type { FastifyPluginAsyncZod } from 'fastify-type-provider-zod';
import { z } from 'zod';
import type { RestoreWindows } from '../domain/restore-window.ts';
import { organizationContextOf } from '../http/guard.ts';
import { idParam, text } from '../http/schemas.ts';
import { setKeySuspended } from './commands.ts';
import { rotateRequest } from './input.ts';
import type { KeyMint } from './mint.ts';
import { keyTag } from './policy.ts';
import { restoreKey } from './restore-commands.ts';
import { rotateKey } from './rotate-commands.ts';
import type { ShownKey } from './store.ts';
import { createdKeyView, type KeyViewContext, keyView, showCreatedKey, toKeyView } from './views.ts';

const suspendRequest = z
  .strictObject({
    reason: text(500).optional().meta({ description: 'Shown as suspendedReason until the key is resumed.' }),
  })
  .meta({ id: 'SuspendRequest', example: { reason: 'The partner reported a leak' } });

export interface KeyLifecycleRoutesOptions extends RestoreWindows {
  mint: KeyMint;
  tokenPrefix: string;
}

export const keyLifecycleRoutes: FastifyPluginAsyncZod<KeyLifecycleRoutesOptions> = async (app, options) => {
  const { mint, tokenPrefix, undoWindowSeconds, retentionSeconds } = options;
  const windows = { undoWindowSeconds, retentionSeconds };
  const params = z.object({ keyId: idParam("The key's id.") });
  const viewAt = (now: Date): KeyViewContext => ({ tokenPrefix, undoWindowSeconds, now });
  const show = (key: ShownKey, now: Date) => ({ view: toKeyView(key, viewAt(now)), etag: keyTag(key) });

  app.post(
    '/keys/:keyId/rotate',
    {
      config: {
        access: { role: 'admin', scope: 'write' },
        idempotencyKey: 'taken',
        entityTag: true,
        problems: ['row_full', 'already_deleted', 'conflict', 'overloaded'],
      },
      schema: {
        operationId: 'rotateKey',
        tags: ['Keys'],
        summary: 'Rotate a key: add a second key to its row',
        description:
          "The new key copies name, limit, allowed addresses, scopes and metadata. Its expiry is the organization's default " +
          'or maximum lifetime; without them it has none. ' +
          'Only an active key can be rotated, and its row needs a free place.',
        params,
        body: rotateRequest.nullish(),
        response: { 201: createdKeyView },
      },
    },
    async (request, reply) => {
      const by = organizationContextOf(request);
      const minted = await mint.mint(by.organizationId);
      return app.runOnce(request, reply, by, async (work) => {
        const created = await rotateKey(work, minted, request.params.keyId, request.body ?? {});
        return showCreatedKey(created, viewAt(work.now));
      });
    },
  );

  app.post(
    '/keys/:keyId/suspend',
    {
      config: {
        access: { role: 'admin', scope: 'write' },
        idempotencyKey: 'taken',
        entityTag: true,
        problems: ['already_deleted'],
      },
      schema: {
        operationId: 'suspendKey',
        tags: ['Keys'],
        summary: 'Suspend a key',
        description:
          'This replica rejects the key from the reply on, the others as soon as they are notified. It keeps its place in the row. A key that is suspended already does not change.',
        params,
        body: suspendRequest.nullish(),
        response: { 200: keyView },
      },
    },
    async (request, reply) => {
      const { keyId } = request.params;
      const suspension = { isSuspended: true, reason: request.body?.reason ?? null } as const;
      return app.runOnce(request, reply, organizationContextOf(request), async (work) =>
        show(await setKeySuspended(work, keyId, suspension), work.now),
      );
    },
  );

  app.post(
    '/keys/:keyId/resume',
    {
      config: {
        access: { role: 'admin', scope: 'write' },
        idempotencyKey: 'taken',
        entityTag: true,
        problems: ['already_deleted'],
      },
      schema: {
        operationId: 'resumeKey',
        tags: ['Keys'],
        summary: 'Resume a suspended key',
        params,
        response: { 200: keyView },
      },
    },
    async (request, reply) => {
      const { keyId } = request.params;
      return app.runOnce(request, reply, organizationContextOf(request), async (work) =>
        show(await setKeySuspended(work, keyId, { isSuspended: false }), work.now),
      );
    },
  );

  app.post(
    '/keys/:keyId/restore',
    {
      config: {
        access: { role: 'admin', scope: 'write' },
        idempotencyKey: 'taken',
        entityTag: true,
        problems: ['not_restorable', 'row_full', 'conflict'],
      },
      schema: {
        operationId: 'restoreKey',
        tags: ['Keys'],
        summary: 'Restore a deleted key',
        description:
          'Possible until restorableUntil. A suspended or expired key is still suspended or expired after it. ' +
          'Later only an operator can restore the key, through a recovery request.',
        params,
        response: { 200: keyView },
      },
    },
    async (request, reply) => {
      const { keyId } = request.params;
      return app.runOnce(request, reply, organizationContextOf(request), async (work) =>
        show(await restoreKey(work, keyId, { windows, recovery: null }), work.now),
      );
    },
  );
};
