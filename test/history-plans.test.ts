import { sql } from 'kysely';
import type { OrganizationId } from '../src/domain/ids.ts';
import { findRange, type HistoryFilter, listEvents, listEventsQuery, preferIndexScans } from '../src/history/store.ts';
import { startService } from './support/app.ts';
import { dbQuery } from './support/database.ts';
import { dbAddEvents, frequentPairs } from './support/histories.ts';
import { t } from './support/tap.ts';

interface PlanNode {
  'Node Type': string;
  'Index Name'?: string;
  'Actual Rows': number;
  'Actual Loops': number;
  'Rows Removed by Filter'?: number;
  Plans?: PlanNode[];
}

const nodesOf = (node: PlanNode): PlanNode[] => [node, ...(node.Plans ?? []).flatMap(nodesOf)];

t.test(
  'each combination of up to three filters, with or without a time range, reads no more than a page',
  async (t) => {
    const { urls, client, organizationId } = await startService(t);
    const count = 6_000;
    const { factsOf, values, times } = frequentPairs(count);
    await dbAddEvents(urls.superuser, organizationId, count, factsOf);
    await dbQuery(urls.superuser, 'analyze history');
    const names = Object.keys(values) as Array<keyof typeof values>;
    const filters: HistoryFilter[] = [{}];
    // Each set of filters, with the frequent value of each or with one that never occurs together with it.
    for (const name of names) {
      const smaller = [...filters];
      for (const value of values[name]) filters.push(...smaller.map((filter) => ({ ...filter, [name]: value })));
    }
    const [later, earlier] = times.map((time) => new Date(time)) as [Date, Date];
    const ranges = [{}, { from: later }, { to: earlier }, { from: earlier, to: later }, { to: new Date(0) }];
    for (const filter of filters) {
      for (const range of ranges) {
        const what = JSON.stringify({ ...filter, ...range });
        const rows = await client.db.transaction().execute(async (tx) => {
          const found = await findRange(tx, organizationId, range);
          await preferIndexScans(tx);
          const query = listEventsQuery(organizationId, filter, { limit: 50, ...(found ?? { first: 1, last: 0 }) });
          const explained = await sql<{ 'QUERY PLAN': Array<{ Plan: PlanNode }> }>`
          explain (analyze, format json) ${query}`.execute(tx);
          return explained.rows;
        });
        const [plan] = rows[0]?.['QUERY PLAN'] ?? [];
        const nodes = plan === undefined ? [] : nodesOf(plan.Plan);
        const types = new Set(nodes.map((node) => node['Node Type']));
        const expected = new Set(['Limit', 'Index Scan', 'Index Only Scan', 'Result', 'Subquery Scan', 'WindowAgg']);
        t.same(
          [...types].filter((type) => !expected.has(type)),
          [],
          `${what} needs no sort and no scan of the table`,
        );
        const read = nodes
          .filter((node) => node['Index Name'] !== undefined)
          .map((node) => (node['Actual Rows'] + (node['Rows Removed by Filter'] ?? 0)) * node['Actual Loops']);
        t.ok(Math.max(...read) <= 51, `${what} reads ${read} rows`);
      }
    }

    const all = await client.db
      .selectFrom('history')
      .select(['sequence', 'key_id', 'partner_id', 'actor_id', 'action', 'at'])
      .where('chain', '=', organizationId)
      .orderBy('sequence', 'desc')
      .execute();
    for (const filter of filters) {
      for (const range of ranges) {
        const { keyId, partnerId, actorId, action, from, to }: HistoryFilter = { ...filter, ...range };
        const expected = all
          .filter((event) => keyId === undefined || event.key_id === keyId)
          .filter((event) => partnerId === undefined || event.partner_id === partnerId)
          .filter((event) => actorId === undefined || event.actor_id === actorId)
          .filter((event) => action === undefined || event.action === action)
          .filter(({ at }) => (from === undefined || at >= from) && (to === undefined || at < to))
          .slice(0, 51);
        const page = { limit: 50, beforeSequence: undefined };
        const found = await listEvents(client.db, organizationId as OrganizationId, { ...filter, ...range }, page);
        t.same(
          found.map(({ sequence }) => sequence),
          expected.map(({ sequence }) => sequence),
          `${JSON.stringify({ ...filter, ...range })} lists the expected events`,
        );
      }
    }
  },
);
