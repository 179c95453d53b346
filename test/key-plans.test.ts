import { sql } from 'kysely';
import type { OrganizationId, PartnerId } from '../src/domain/ids.ts';
import { countSuspendedIdle } from '../src/keys/idle-store.ts';
import { type KeyFilter, queriesFor } from '../src/keys/search.ts';
import { startService } from './support/app.ts';
import { dbQuery } from './support/database.ts';
import { crowdFilters, dbAddKeyCrowd } from './support/key-crowds.ts';
import { dbVacuum, plansOf } from './support/plans.ts';
import { t } from './support/tap.ts';

interface PlanNode {
  'Node Type': string;
  'Relation Name'?: string;
  'Actual Rows': number;
  'Actual Loops': number;
  'Rows Removed by Filter'?: number;
  'Rows Removed by Index Recheck'?: number;
  Plans?: PlanNode[];
}

const nodesOf = (node: PlanNode): PlanNode[] => [node, ...(node.Plans ?? []).flatMap(nodesOf)];

/** The rows that a plan reads from rows of tables, not from indexes alone. */
function rowsRead(node: PlanNode): number {
  const rows =
    node['Actual Rows'] + (node['Rows Removed by Filter'] ?? 0) + (node['Rows Removed by Index Recheck'] ?? 0);
  return rows * node['Actual Loops'];
}

const toFilter = (name: string, value: string): KeyFilter => {
  if (name.startsWith('metadata.')) return { metadata: [[name.slice('metadata.'.length), value]] };
  return name.endsWith('Before') ? { [name]: new Date(value) } : { [name]: value };
};

t.test('each filter, alone and with a partner or a status, reads few rows: no table is scanned', async (t) => {
  const { urls, client, organizationId, clock } = await startService(t);
  const count = 24_000;
  await dbAddKeyCrowd(urls.superuser, organizationId, count);
  await dbQuery(urls.superuser, 'vacuum analyze api_keys');
  await dbQuery(urls.superuser, 'vacuum analyze key_last_uses');
  const [rare] = await dbQuery(urls.superuser, "select partner_id from api_keys where name like 'rare%' limit 1");
  const companions: KeyFilter[] = [
    {},
    { partnerId: rare?.['partner_id'] as PartnerId },
    { partnerId: 'default' },
    { status: 'active' },
    { status: 'suspended' },
    { status: 'expired' },
    { status: 'deleted' },
  ];
  const [middle] = await dbQuery(urls.superuser, 'select id from api_keys order by id offset 12000 limit 1');
  for (const [name, values] of Object.entries(crowdFilters)) {
    for (const [amount, value] of Object.entries(values)) {
      for (const companion of companions) {
        for (const before of [undefined, middle?.['id'] as never]) {
          const what = `${name}, ${amount}, ${JSON.stringify(companion)}${before === undefined ? '' : ', later page'}`;
          const filter = { ...companion, ...toFilter(name, value) };
          const search = { organizationId: organizationId as OrganizationId, filter, now: new Date(clock.nowMs()) };
          const plans = await client.db.transaction().execute(async (tx) => {
            const read: PlanNode[] = [];
            for await (const query of queriesFor(tx, search, { limit: 51, before })) {
              const explained = await sql<{ 'QUERY PLAN': Array<{ Plan: PlanNode }> }>`
                explain (analyze, format json) ${query}`.execute(tx);
              const [plan] = explained.rows[0]?.['QUERY PLAN'] ?? [];
              if (plan === undefined) throw new Error('there is no plan');
              read.push(plan.Plan);
              if (plan.Plan['Actual Rows'] === 51) break;
            }
            return read;
          });
          const nodes = plans.flatMap(nodesOf);
          const scans = nodes.filter((node) => node['Node Type'] === 'Seq Scan' && node['Relation Name'] !== undefined);
          t.same(scans, [], `${what} scans no table`);
          const ofRows = nodes.filter(({ 'Node Type': type }) => ['Index Scan', 'Bitmap Heap Scan'].includes(type));
          const most = Math.max(0, ...ofRows.map(rowsRead));
          t.ok(most <= 1_100, `${what} reads ${most} rows`);
        }
      }
    }
  }
});

t.test(
  'each scrape counts the keys that are suspended as idle from an index, without reading their rows',
  async (t) => {
    const { urls, client, organizationId } = await startService(t);
    await dbAddKeyCrowd(urls.superuser, organizationId, 6_000);
    await dbQuery(
      urls.superuser,
      `update api_keys set suspended_at = now(), suspended_reason = 'idle'
     where deleted_at is null and purged_at is null and id in (select id from api_keys order by id limit 2000)`,
    );
    await dbVacuum(urls.superuser, 'api_keys');
    let count = 0;
    const [plan = []] = await plansOf(client.pool, async (db) => {
      count = await countSuspendedIdle(db);
    });
    t.ok(count > 1_000, `${count} keys are suspended as idle`);
    const ofKeys = plan.filter((node) => node['Relation Name'] === 'api_keys');
    t.match(ofKeys, [{ 'Node Type': 'Index Only Scan', 'Index Name': 'api_keys_suspended' }]);
  },
);
