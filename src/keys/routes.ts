import type { FastifyReply } from 'fastify';
import type { FastifyPluginAsyncZod } from 'fastify-type-provider-zod';
import { z } from 'zod';
import type { Keyring } from '../crypto/keyring.ts';
import { givenDeleteReasons } from '../database/tables/api-keys.ts';
import { type Transactor, transact } from '../database/work.ts';
import { isId, type KeyId } from '../domain/ids.ts';
import { decodeCursor, toPage } from '../domain/page.ts';
import { organizationContextOf, organizationOf } from '../http/guard.ts';
import { expectedTags } from '../http/if-match.ts';
import { listOf } from '../http/list.ts';
import { idParam, pageOf, text } from '../http/schemas.ts';
import { createKey, deleteKey, patchKey } from './commands.ts';
import { keyListQuery, toKeyFilter } from './filter-input.ts';
import { keyPatch, newKey } from './input.ts';
import type { KeyMint } from './mint.ts';
import { keyTag } from './policy.ts';
import { revealKey } from './reveal.ts';
import { getKey, listKeys, type ShownKey } from './store.ts';
import { createdKeyView, type KeyViewContext, keyView, showCreatedKey, toKeyView } from './views.ts';

const revealRequest = z
  .strictObject({ reason: text(500).optional(), recipient: text(200).optional() })
  .meta({ id: 'RevealRequest', example: { reason: 'The partner lost it', recipient: 'ops@partner.example' } });

const revealedKeyView = z
  .object({ key: z.string().meta({ description: 'The plaintext.', example: 'lk_k_01k9s3v5wqe8n8x4r2m6t7yb0c_Vx0…' }) })
  .meta({ id: 'RevealedKey' });

const deletionReasonSchema = z.enum(givenDeleteReasons).meta({ id: 'KeyDeletionReason' });

export interface KeyRoutesOptions {
  transactor: Transactor;
  mint: KeyMint;
  keyring: Keyring;
  tokenPrefix: string;
  undoWindowSeconds: number;
}

export const keyRoutes: FastifyPluginAsyncZod<KeyRoutesOptions> = async (app, options) => {
  const { transactor, mint, keyring, tokenPrefix, undoWindowSeconds } = options;
  const { db, clock } = transactor;
  const params = z.object({ keyId: idParam("The key's id.") });
  const viewAt = (now: Date): KeyViewContext => ({ tokenPrefix, undoWindowSeconds, now });
  const viewContext = () => viewAt(new Date(clock.nowMs()));
  /** Adds the entity tag for `If-Match`. */
  const show = (reply: FastifyReply, key: ShownKey) => {
    reply.header('etag', keyTag(key));
    return toKeyView(key, viewContext());
  };

  app.get(
    '/keys',
    {
      config: { access: { role: 'admin', scope: 'read' } },
      schema: {
        operationId: 'listKeys',
        tags: ['Keys'],
        summary: 'List keys, newest first',
        querystring: keyListQuery,
        response: { 200: pageOf('KeyPage', keyView) },
      },
    },
    async (request) => {
      const { limit, cursor, ...filter } = request.query;
      const context = viewContext();
      const { now } = context;
      const search = {
        organizationId: organizationOf(request),
        filter: toKeyFilter(filter, now, undoWindowSeconds),
        now,
      };
      const keys = await listKeys(db, search, { limit, before: decodeCursor(listOf(request), cursor, isKeyId) });
      return toPage(
        listOf(request),
        keys,
        limit,
        (key) => key.id,
        (key) => toKeyView(key, context),
      );
    },
  );

  app.post(
    '/keys',
    {
      config: {
        access: { role: 'admin', scope: 'write' },
        idempotencyKey: 'taken',
        entityTag: true,
        problems: ['row_full', 'already_deleted', 'not_found', 'overloaded'],
      },
      schema: {
        operationId: 'createKey',
        tags: ['Keys'],
        summary: 'Create a key',
        description:
          'A row holds at most two live keys. A new key does not affect the other one. Without `expiresAt` it gets the default ' +
          'lifetime of the organization, otherwise the maximum; null asks for no expiry, which a maximum rejects.',
        body: newKey,
        response: { 201: createdKeyView },
      },
    },
    async (request, reply) => {
      const { name, rateLimit, ...rest } = request.body;
      const given = { ...rest, name: name ?? null, rateLimit: rateLimit ?? null };
      const by = organizationContextOf(request);
      const minted = await mint.mint(by.organizationId);
      return app.runOnce(request, reply, by, async (work) =>
        showCreatedKey(await createKey(work, minted, given), viewAt(work.now)),
      );
    },
  );

  app.get(
    '/keys/:keyId',
    {
      config: { access: { role: 'admin', scope: 'read' }, entityTag: true },
      schema: {
        operationId: 'getKey',
        tags: ['Keys'],
        summary: 'Get a key without its plaintext',
        params,
        response: { 200: keyView },
      },
    },
    async (request, reply) => show(reply, await getKey(db, organizationOf(request), request.params.keyId)),
  );

  app.patch(
    '/keys/:keyId',
    {
      config: { access: { role: 'admin', scope: 'write' }, entityTag: true, problems: ['already_deleted'] },
      schema: {
        operationId: 'updateKey',
        tags: ['Keys'],
        summary: 'Change the settings of a key',
        description:
          'Omitted fields do not change. null removes name, expiresAt or rateLimit. An expiry past the maximum lifetime, counted from the creation, is rejected; an earlier end than before is accepted up to the maximum from now.',
        params,
        body: keyPatch,
        response: { 200: keyView },
      },
    },
    async (request, reply) => {
      const by = organizationContextOf(request);
      const { keyId } = request.params;
      const expected = expectedTags(request);
      return show(reply, await transact(transactor, by, (work) => patchKey(work, keyId, request.body, expected)));
    },
  );

  app.delete(
    '/keys/:keyId',
    {
      config: { access: { role: 'admin', scope: 'write' }, problems: ['already_deleted'] },
      schema: {
        operationId: 'deleteKey',
        tags: ['Keys'],
        summary: 'Delete a key',
        description:
          'This replica rejects the key from the reply on, the others as soon as they are notified. The reason compromised also deletes its hash and sealed plaintext, and cannot be undone.',
        params,
        querystring: z.strictObject({
          reason: deletionReasonSchema.default('other'),
        }),
        response: { 200: keyView },
      },
    },
    async (request) => {
      const { params, query } = request;
      const by = organizationContextOf(request);
      const key = await transact(transactor, by, (work) => deleteKey(work, params.keyId, query.reason));
      return toKeyView(key, viewContext());
    },
  );

  app.post(
    '/keys/:keyId/reveal',
    {
      config: {
        access: { role: 'admin', scope: 'reveal', operator: false },
        // A retried reveal is a new reveal, with its own event.
        idempotencyKey: 'ignored',
        problems: ['already_deleted', 'reveal_disabled', 'rate_limited'],
      },
      schema: {
        operationId: 'revealKey',
        tags: ['Keys'],
        summary: "Reveal a key's plaintext",
        description:
          'Latchkey records the reveal before it sends the plaintext. Neither the scope write nor an operator can reveal keys.',
        params,
        body: revealRequest.nullish(),
        response: { 200: revealedKeyView },
      },
    },
    async (request, reply) => {
      app.endpointLimits.countReveal(request, reply);
      const by = organizationContextOf(request);
      const plaintext = await revealKey({ transactor, keyring }, by, request.params.keyId, request.body ?? {});
      return { key: plaintext.reveal() };
    },
  );
};

const isKeyId = (value: string): value is KeyId => isId('key', value);
