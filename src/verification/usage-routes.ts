import type { FastifyPluginAsyncZod } from 'fastify-type-provider-zod';
import { z } from 'zod';
import type { Transactor } from '../database/work.ts';
import { validationProblem } from '../domain/errors.ts';
import { organizationOf } from '../http/guard.ts';
import { earliestMs, idParam, latestMs, timestampInput, timestampView } from '../http/schemas.ts';
import { getKeyOwner } from '../keys/store.ts';
import { dayMs, hourMs } from '../lib/durations.ts';
import { notLater } from '../lib/past.ts';
import { getPartner } from '../partners/store.ts';
import { findLastUse, listUsage, type UsageOf, type UsagePeriod, type UsageQuery } from './usage-store.ts';

/** How long a period is, how far back is shown by default, and how much at most is read at once. */
const spans = {
  hour: { periodMs: hourMs, defaultMs: dayMs, mostMs: 31 * dayMs },
  day: { periodMs: dayMs, defaultMs: 30 * dayMs, mostMs: 366 * dayMs },
};

const granularitySchema = z.enum(['hour', 'day']).meta({ id: 'UsageGranularity' });

const usageQuery = z.strictObject({
  from: timestampInput.optional().meta({
    description: 'Inclusive; taken back to the beginning of its period. Left out: a day, or 30 days, before `to`.',
  }),
  to: timestampInput.optional().meta({ description: 'Exclusive; put off to the end of its period. Left out: now.' }),
  granularity: granularitySchema.default('hour'),
});

const counts = {
  allowed: z.int().meta({ example: 1204 }),
  denied: z.int().meta({ description: 'Refused for its state, address or permission.', example: 3 }),
  rateLimited: z.int().meta({ example: 0 }),
  afterDeletion: z.int().meta({ description: 'Of those denied: the key had been deleted.', example: 0 }),
};

const usageView = z
  .object({
    from: timestampView.meta({ description: 'The beginning of the first period that is counted.' }),
    to: timestampView.meta({
      description: 'The end of the last period that is counted; within it, it may be still to come.',
    }),
    granularity: granularitySchema,
    lastUsedAt: timestampView.nullable(),
    total: z.object(counts).meta({ id: 'UsageCounts' }),
    data: z
      .array(z.object({ start: timestampView, ...counts }).meta({ id: 'UsagePeriod' }))
      .meta({ description: 'Oldest first. Periods without use are left out.' }),
  })
  .meta({ id: 'Usage' });

const description =
  'Counted in whole hours or days of UTC: the range is widened to them, and `from` and `to` of the reply name the widened range. ' +
  'Old hours are kept as days only. What was just used shows within ten seconds.';

export const usageRoutes: FastifyPluginAsyncZod<{ transactor: Transactor }> = async (app, { transactor }) => {
  const { db, clock } = transactor;

  async function usageOf(of: UsageOf, organizationId: UsageQuery['organizationId'], query: UsageWish) {
    const now = new Date(clock.nowMs());
    const range = rangeOf(query, now);
    const [periods, lastUsedAt] = await Promise.all([
      listUsage(db, { organizationId, of, ...range }),
      findLastUse(db, of),
    ]);
    return toUsageView(range, periods, notLater(lastUsedAt, now));
  }

  app.get(
    '/keys/:keyId/usage',
    {
      config: { access: { role: 'admin', scope: 'read' } },
      schema: {
        operationId: 'getKeyUsage',
        tags: ['Keys'],
        summary: 'How often a key was used, and how that ended',
        description,
        params: z.object({ keyId: idParam('Which key') }),
        querystring: usageQuery,
        response: { 200: usageView },
      },
    },
    async (request) => {
      const organizationId = organizationOf(request);
      const { keyId } = await getKeyOwner(db, organizationId, request.params.keyId);
      return usageOf({ keyId }, organizationId, request.query);
    },
  );

  app.get(
    '/partners/:partnerId/usage',
    {
      config: { access: { role: 'admin', scope: 'read' } },
      schema: {
        operationId: 'getPartnerUsage',
        tags: ['Partners'],
        summary: "How often a partner's keys were used, deleted ones too",
        description,
        params: z.object({ partnerId: idParam('Which partner') }),
        querystring: usageQuery,
        response: { 200: usageView },
      },
    },
    async (request) => {
      const organizationId = organizationOf(request);
      const { id: partnerId } = await getPartner(db, organizationId, request.params.partnerId);
      return usageOf({ partnerId }, organizationId, request.query);
    },
  );
};

type UsageWish = z.output<typeof usageQuery>;
type Range = Pick<UsageQuery, 'from' | 'to' | 'granularity'>;

/**
 * Widened to whole periods, because nothing finer is kept.
 * @throws Problem `validation_failed` for a range that is empty, too long, or not within the years that can be shown
 */
function rangeOf({ from, to, granularity }: UsageWish, now: Date): Range {
  const { periodMs, defaultMs, mostMs } = spans[granularity];
  const end = (to ?? now).getTime();
  const wideEnd = Math.ceil(end / periodMs) * periodMs;
  const start = from?.getTime() ?? wideEnd - defaultMs;
  if (start >= end) throw validationProblem('query.from', 'must be before `to`');
  if (end - start > mostMs) {
    throw validationProblem(
      'query.from',
      `must be at most ${mostMs / dayMs} days before \`to\` for granularity ${granularity}`,
    );
  }
  const wideStart = Math.floor(start / periodMs) * periodMs;
  if (wideStart < earliestMs || wideEnd > latestMs) {
    throw validationProblem('query.to', 'makes a range that is not within the years 0001 to 9999 of UTC');
  }
  return { from: new Date(wideStart), to: new Date(wideEnd), granularity };
}

function toUsageView({ from, to, granularity }: Range, periods: UsagePeriod[], lastUsedAt: Date | null) {
  const sum = (count: (period: UsagePeriod) => number) => periods.reduce((total, period) => total + count(period), 0);
  return {
    from: from.toISOString(),
    to: to.toISOString(),
    granularity,
    lastUsedAt: lastUsedAt?.toISOString() ?? null,
    total: {
      allowed: sum(({ allowed }) => allowed),
      denied: sum(({ denied }) => denied),
      rateLimited: sum(({ rate_limited }) => rate_limited),
      afterDeletion: sum(({ after_deletion }) => after_deletion),
    },
    data: periods.map((period) => ({
      start: period.start.toISOString(),
      allowed: period.allowed,
      denied: period.denied,
      rateLimited: period.rate_limited,
      afterDeletion: period.after_deletion,
    })),
  };
}
