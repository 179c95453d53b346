import type { FastifyPluginAsyncZod } from 'fastify-type-provider-zod';
import { z } from 'zod';
import type { Transactor } from '../database/work.ts';
import { validationProblem } from '../domain/errors.ts';
import type { OrganizationId } from '../domain/ids.ts';
import { organizationOf } from '../http/guard.ts';
import { idParam, timestampInput, timestampView } from '../http/schemas.ts';
import { getKeyOwner } from '../keys/store.ts';
import { dayMs, earliestMs, hourMs, latestMs } from '../lib/durations.ts';
import { notAfter } from '../lib/past.ts';
import { getPartner } from '../partners/store.ts';
import { findLastUse, listUsage, type UsagePeriod, type UsageQuery, type UsageSubject } from './usage-store.ts';

/** By granularity: the length of a period, the default range and the longest range. */
const spans = {
  hour: { periodMs: hourMs, defaultMs: dayMs, maxMs: 31 * dayMs },
  day: { periodMs: dayMs, defaultMs: 30 * dayMs, maxMs: 366 * dayMs },
};

const granularitySchema = z.enum(['hour', 'day']).meta({ id: 'UsageGranularity' });

const usageQuery = z.strictObject({
  from: timestampInput.optional().meta({
    description:
      'Inclusive; rounded down to the start of its period. Default: one day before `to`, or 30 days for granularity day.',
  }),
  to: timestampInput.optional().meta({ description: 'Exclusive; rounded up to the end of its period. Default: now.' }),
  granularity: granularitySchema.default('hour'),
});

const counts = {
  allowed: z.int().meta({ example: 1204 }),
  denied: z.int().meta({ description: 'Rejected because of state, address or permission.', example: 3 }),
  rateLimited: z.int().meta({ example: 0 }),
  afterDeletion: z
    .int()
    .meta({ description: 'The part of `denied` that happened after the key was deleted.', example: 0 }),
};

const usageView = z
  .object({
    from: timestampView.meta({ description: 'The start of the first period.' }),
    to: timestampView.meta({
      description: 'The end of the last period. It is in the future if that period has not ended.',
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
  'Usage is counted in whole hours or days of UTC. The range is widened to whole periods; `from` and `to` of the reply are the ' +
  'widened range. Old hours are stored as days only. A use is visible within ten seconds.';

/** Serves usage of keys and partners. */
export const usageRoutes: FastifyPluginAsyncZod<{ transactor: Transactor }> = async (app, { transactor }) => {
  const { db, clock } = transactor;

  async function usageOf(of: UsageSubject, organizationId: OrganizationId, query: UsageQueryString) {
    const now = new Date(clock.nowMs());
    const range = rangeOf(query, now);
    const [periods, lastUsedAt] = await Promise.all([
      listUsage(db, { organizationId, of, ...range }),
      findLastUse(db, of),
    ]);
    return toUsageView(range, periods, notAfter(lastUsedAt, now));
  }

  app.get(
    '/keys/:keyId/usage',
    {
      config: { access: { role: 'admin', scope: 'read' } },
      schema: {
        operationId: 'getKeyUsage',
        tags: ['Keys'],
        summary: 'Get the usage of a key',
        description,
        params: z.object({ keyId: idParam("The key's id.") }),
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
        summary: "Get the usage of a partner's keys, including deleted keys",
        description,
        params: z.object({ partnerId: idParam("The partner's id.") }),
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

type UsageQueryString = z.output<typeof usageQuery>;
type Range = Pick<UsageQuery, 'from' | 'to' | 'granularity'>;

/**
 * Widens the range to whole periods, because nothing finer is stored.
 * @throws Problem `validation_failed` for a range that is empty, too long, or outside the years 0001 to 9999
 */
function rangeOf({ from, to, granularity }: UsageQueryString, now: Date): Range {
  const { periodMs, defaultMs, maxMs } = spans[granularity];
  const end = (to ?? now).getTime();
  const wideEnd = Math.ceil(end / periodMs) * periodMs;
  const start = from?.getTime() ?? wideEnd - defaultMs;
  if (start >= end) throw validationProblem('query.from', 'must be before `to`');
  if (end - start > maxMs) {
    throw validationProblem(
      'query.from',
      `must be at most ${maxMs / dayMs} days before \`to\` for granularity ${granularity}`,
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
