import type { FastifyPluginAsyncZod } from 'fastify-type-provider-zod';
import { z } from 'zod';
import type { Db } from '../database/client.ts';
import { type GivenDeleteReason, givenDeleteReasons } from '../database/tables/api-keys.ts';
import type { Transactor } from '../database/work.ts';
import { Problem } from '../domain/errors.ts';
import { createConcurrencyLimit, organizationGroupOf } from '../http/concurrency-limit.ts';
import { organizationContextOf } from '../http/guard.ts';
import { idSchema, idView, text } from '../http/schemas.ts';
import { type BulkChange, changeKeys } from './bulk-commands.ts';
import { keyFilterInput, toKeyFilter } from './filter-input.ts';
import { bulkActions, skipCodes } from './policy.ts';
import { countKeys, findKeys, type KeySearch } from './search.ts';

/** The maximum number of keys of a request: their events hold the head of the organization's chain until the commit. */
const mostKeys = 1_000;

const bulkAction = z.enum(bulkActions).meta({ id: 'BulkAction' });

const bulkRequest = z
  .strictObject({
    action: bulkAction,
    reason: text(500).optional().meta({
      description:
        'For suspend: any text. For delete: one of the reasons of `DELETE /v1/keys/{keyId}`, by default other. Not for resume.',
    }),
    keyIds: z
      .array(idSchema('key'))
      .min(1)
      .max(mostKeys)
      .refine((ids) => new Set(ids).size === ids.length, 'must not name a key twice')
      .optional(),
    filter: keyFilterInput.optional(),
    dryRun: z
      .boolean()
      .optional()
      .meta({ description: 'If true, the reply says what the request would change, and nothing changes.' }),
  })
  .superRefine(({ action, reason, keyIds, filter }, context) => {
    const reject = (path: string[], message: string) => context.addIssue({ code: 'custom', path, message });
    if ((keyIds === undefined) === (filter === undefined)) reject([], 'must have exactly one of keyIds and filter');
    if (reason === undefined) return;
    if (action === 'resume') reject(['reason'], 'must be left out for resume');
    if (action === 'delete' && !isDeleteReason(reason)) {
      reject(['reason'], `must be one of ${givenDeleteReasons.map((one) => `"${one}"`).join(', ')}`);
    }
  })
  .meta({
    id: 'BulkRequest',
    example: { action: 'suspend', reason: 'Leaked in a log', filter: { name: 'Billing' }, dryRun: true },
  });

const bulkResult = z
  .object({
    action: bulkAction,
    dryRun: z.boolean(),
    matched: z.int().min(0).meta({ description: 'The number of keys of the organization that the request selects.' }),
    changed: z.array(idView('key')).meta({ description: 'With dryRun, the keys that would change.' }),
    skipped: z.array(
      z
        .object({
          keyId: idView('key'),
          code: z.enum(skipCodes).meta({
            id: 'BulkSkipCode',
            description: 'Why the key did not change. `not_found`: no such key in this organization.',
          }),
        })
        .meta({ id: 'BulkSkip' }),
    ),
  })
  .meta({ id: 'BulkResult' });

export interface KeyBulkRoutesOptions {
  transactor: Transactor;
  undoWindowSeconds: number;
}

export const keyBulkRoutes: FastifyPluginAsyncZod<KeyBulkRoutesOptions> = async (app, options) => {
  const { transactor, undoWindowSeconds } = options;
  const { db, clock } = transactor;
  // Bulk requests of an organization wait for each other at the head of its chain, each with a connection of the pool.
  const limit = createConcurrencyLimit({ resources: 'bulk requests', totalLimit: 4, retryAfterSeconds: 1 });

  app.post(
    '/keys/bulk',
    {
      config: {
        access: { role: 'admin', scope: 'write' },
        idempotencyKey: 'taken',
        problems: ['too_many_matches', 'overloaded'],
      },
      schema: {
        operationId: 'changeKeys',
        tags: ['Keys'],
        summary: 'Suspend, resume or delete many keys',
        description:
          `Selects keys by their ids or by the filters of \`GET /v1/keys\`, at most ${mostKeys}, and changes them in one transaction: all or ` +
          'nothing, with one event for each key. Keys that need no change are skipped.',
        body: bulkRequest,
        response: { 200: bulkResult },
      },
    },
    async (request, reply) => {
      const { keyIds, dryRun = false, filter } = request.body;
      const by = organizationContextOf(request);
      const release = limit.acquire(organizationGroupOf(request));
      try {
        const now = new Date(clock.nowMs());
        const search = filter && {
          organizationId: by.organizationId,
          filter: toKeyFilter(filter, now, undoWindowSeconds),
          now,
        };
        const selected = search === undefined ? (keyIds ?? []) : await findAtMost(db, search);
        const given = { change: changeOf(request.body), keyIds: selected, search, dryRun };
        return await app.runOnce(request, reply, by, async (work) => ({ view: await changeKeys(work, given) }));
      } finally {
        release();
      }
    },
  );
};

/** @throws Problem `too_many_matches` */
async function findAtMost(db: Db, search: KeySearch) {
  const ids = await findKeys(db, search, { limit: mostKeys + 1 });
  if (ids.length <= mostKeys) return ids;
  const matched = await countKeys(db, search);
  throw new Problem(
    'too_many_matches',
    `The filter matches ${matched} keys, and a bulk request changes at most ${mostKeys}.`,
    { members: { matched } },
  );
}

function changeOf({ action, reason }: z.output<typeof bulkRequest>): BulkChange {
  if (action === 'resume') return { action };
  if (action === 'suspend') return { action, reason: reason ?? null };
  return { action, reason: reason !== undefined && isDeleteReason(reason) ? reason : 'other' };
}

function isDeleteReason(text: string): text is GivenDeleteReason {
  return givenDeleteReasons.some((reason) => reason === text);
}
