import { Kysely, PostgresDialect } from 'kysely';
import type pg from 'pg';
import type { Db } from '../../src/database/client.ts';
import type { Database } from '../../src/database/schema.ts';
import { dbQuery } from './database.ts';
import { eventually } from './process.ts';

/** A node of a plan, as Postgres explains it. */
export interface PlanNode {
  'Node Type': string;
  'Index Name'?: string;
  'Relation Name'?: string;
  'Actual Rows': number;
  'Heap Fetches'?: number;
  'Actual Loops': number;
  'Rows Removed by Filter'?: number;
  Plans?: PlanNode[];
}

/** Runs `read`, and then each of its queries again. @returns the plans, each as the list of its nodes */
export async function plansOf(pool: pg.Pool, read: (db: Db) => Promise<unknown>): Promise<PlanNode[][]> {
  const queries: Array<{ sql: string; parameters: readonly unknown[] }> = [];
  const db = new Kysely<Database>({
    dialect: new PostgresDialect({ pool }),
    log({ query }) {
      queries.push(query);
    },
  });
  await read(db);
  const plans: PlanNode[][] = [];
  for (const { sql, parameters } of queries) {
    if (!sql.trimStart().startsWith('select')) continue;
    const { rows } = await pool.query<{ 'QUERY PLAN': Array<{ Plan: PlanNode }> }>(
      `explain (analyze, format json) ${sql}`,
      [...parameters],
    );
    const [plan] = rows[0]?.['QUERY PLAN'] ?? [];
    if (plan !== undefined) plans.push(nodesOf(plan.Plan));
  }
  return plans;
}

function nodesOf(node: PlanNode): PlanNode[] {
  return [node, ...(node.Plans ?? []).flatMap(nodesOf)];
}

/** The most rows that a node reads, including those that it drops. */
export function rowsRead(nodes: readonly PlanNode[]): number {
  return Math.max(
    ...nodes.map((node) => (node['Actual Rows'] + (node['Rows Removed by Filter'] ?? 0)) * node['Actual Loops']),
  );
}

/** Vacuums until all of the table can be read from indexes alone: another process's snapshot can prevent it for a while. */
export async function dbVacuum(superuserUrl: string, table: string): Promise<void> {
  await eventually(async () => {
    await dbQuery(superuserUrl, `vacuum analyze ${table}`);
    const visible = `select from pg_class where relname = '${table}' and relallvisible = relpages`;
    return (await dbQuery(superuserUrl, visible)).length > 0;
  });
}
