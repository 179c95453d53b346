import type { FastifyPluginAsyncZod } from 'fastify-type-provider-zod';
import { z } from 'zod';
import type { RestoreWindows } from '../core/restore-window.ts';
import type { Transactor } from '../db/work.ts';
import { organizationDoerOf } from '../http/guard.ts';
import { idParam } from '../http/schemas.ts';
import type { CreatedKey } from './commands.ts';
import type { KeyMint } from './mint.ts';
import { keyTag } from './policy.ts';
import { restoreKey } from './restore-commands.ts';
import { rotateKey } from './rotate-commands.ts';
import type { ShownKey } from './store.ts';
import { resumeKey, suspendKey } from './suspend-commands.ts';
import { createdKeyView, type KeyViewContext, keyView, toCreatedKeyView, toKeyView } from './views.ts';

const longestEndSeconds = 31_536_000;

const rotateRequest = z
  .strictObject({
    expireOldAfterSeconds: z
      .int()
      .min(0)
      .max(longestEndSeconds)
      .optional()
      .meta({ description: 'When the old key expires; an earlier expiry of its own stays. Left out: it goes on.' }),
  })
  .meta({ id: 'RotateRequest', example: { expireOldAfterSeconds: 86_400 } });

export interface KeyLifecycleRoutesOptions extends RestoreWindows {
  mint: KeyMint;
  tokenPrefix: string;
}

/** What a key goes through between its creation and its deletion, and back. */
export const keyLifecycleRoutes: FastifyPluginAsyncZod<KeyLifecycleRoutesOptions> = async (app, options) => {
  const { mint, tokenPrefix, undoWindowSeconds, retentionSeconds } = options;
  const params = z.object({ keyId: idParam('Which key') });
  const viewAt = (now: Date): KeyViewContext => ({ tokenPrefix, undoWindowSeconds, now });
  const show = (key: ShownKey, now: Date) => ({ view: toKeyView(key, viewAt(now)), etag: keyTag(key) });

  app.post(
    '/keys/:keyId/rotate',
    {
      config: {
        access: { role: 'admin', scope: 'write' },
        idempotencyKey: 'taken',
        entityTag: true,
        problems: ['row_full', 'already_deleted', 'conflict', 'reply_gone', 'overloaded'],
      },
      schema: {
        operationId: 'rotateKey',
        tags: ['Keys'],
        summary: 'Add the key that is to take over from this one',
        description:
          'The new key has the same name, limit, allowed addresses and metadata, and no expiry. ' +
          'Only an active key is rotated, and only into a free place of its row.',
        params,
        body: rotateRequest.nullish(),
        response: { 201: createdKeyView },
      },
    },
    async (request, reply) => {
      const by = organizationDoerOf(request);
      return app.runOnce(request, reply, {
        run: (once: Transactor<CreatedKey>) =>
          rotateKey({ transactor: once, mint }, by, request.params.keyId, request.body ?? {}),
        show: (created, now) => ({
          view: toCreatedKeyView(created, viewAt(now)),
          location: `/v1/keys/${created.key.id}`,
          etag: keyTag(created.key),
        }),
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
        summary: 'Refuse a key without deleting it',
        description: 'At once and everywhere. It keeps its place in the row.',
        params,
        response: { 200: keyView },
      },
    },
    async (request, reply) => {
      const by = organizationDoerOf(request);
      const run = (once: Transactor<ShownKey>) => suspendKey(once, by, request.params.keyId);
      return app.runOnce(request, reply, { run, show });
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
        summary: 'Allow a suspended key again',
        params,
        response: { 200: keyView },
      },
    },
    async (request, reply) => {
      const by = organizationDoerOf(request);
      const run = (once: Transactor<ShownKey>) => resumeKey(once, by, request.params.keyId);
      return app.runOnce(request, reply, { run, show });
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
        summary: 'Undo the deletion of a key',
        description:
          'Until restorableUntil, and as it was: a suspended or expired key comes back so. ' +
          'After that an operator can bring it back, through a recovery request.',
        params,
        response: { 200: keyView },
      },
    },
    async (request, reply) => {
      const by = organizationDoerOf(request);
      const windows = { undoWindowSeconds, retentionSeconds };
      const run = (once: Transactor<ShownKey>) => restoreKey(once, by, request.params.keyId, windows);
      return app.runOnce(request, reply, { run, show });
    },
  );
};
