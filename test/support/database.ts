import { randomBytes } from 'node:crypto';
import pg from 'pg';
import type { Test } from 'tap';
import { connect } from '../../src/database/client.ts';
import { migrate } from '../../src/database/migrator.ts';
import { newId } from '../../src/domain/ids.ts';
import { type ClusterUrls, testCluster } from './cluster.ts';

/** A new database, dropped when the test ends. */
export async function createDatabase(t: Test, { migrated = true } = {}): Promise<ClusterUrls> {
  const { urls: cluster, template } = testCluster();
  // `file_copy` takes two thirds of the time of the default, which writes every page to the WAL.
  const { name, urls, drop } = await addDatabase(cluster, migrated ? `template ${template} strategy file_copy` : '');
  t.teardown(drop);
  // The right to connect is stored outside the database, so a copy does not have it.
  const grants = '(select datacl from pg_database where datname = $1)';
  const copy = `update pg_database set datacl = ${grants} where datname = $2`;
  if (migrated) await dbQuery(cluster.superuser, copy, [template, name]);
  return urls;
}

/** @param how further clauses for `create database` */
export async function addDatabase(cluster: ClusterUrls, how: string) {
  const name = `latchkey_test_${randomBytes(6).toString('hex')}`;
  await dbQuery(cluster.superuser, `create database ${name} owner ${roleOf(cluster.owner)} ${how}`);
  const urls: ClusterUrls = {
    superuser: withDatabase(cluster.superuser, name),
    owner: withDatabase(cluster.owner, name),
    app: withDatabase(cluster.app, name),
  };
  return { name, urls, drop: () => dbQuery(cluster.superuser, `drop database ${name} with (force)`) };
}

/** @returns the names of the applied migrations */
export async function migrateAs(urls: ClusterUrls): Promise<string[]> {
  const owner = connect({ url: urls.owner, poolSize: 2 });
  try {
    return (await migrate(owner, { appRole: roleOf(urls.app) })).applied;
  } finally {
    await owner.close();
  }
}

export function roleOf(url: string): string {
  return new URL(url).username;
}

function withDatabase(url: string, name: string): string {
  const changed = new URL(url);
  changed.pathname = `/${name}`;
  return changed.href;
}

/** Runs a statement as the role in the URL. */
export async function dbQuery(
  url: string,
  sql: string,
  values: unknown[] = [],
): Promise<Array<Record<string, unknown>>> {
  return withConnection(url, async (client) => (await client.query<Record<string, unknown>>(sql, values)).rows);
}

/** Writes partners with both permissions and the external ids customer-0, customer-1, …, without keys. */
export async function dbAddPartners(url: string, organizationId: string, count: number): Promise<void> {
  const ids = Array.from({ length: count }, () => newId('partner'));
  await dbQuery(
    url,
    `insert into partners (id, organization_id, email, external_id, permissions, created_at, created_by)
     select id, $1, id || '@p.example', 'customer-' || (at - 1), '{read,write}', now(),
       '{"type":"system","id":"test","name":"test","email":null}'
     from unnest($2::text[]) with ordinality as partner (id, at)`,
    [organizationId, ids],
  );
}

/** All tables as text; binary columns as text and as hex. */
export async function dbDump(superuserUrl: string): Promise<string> {
  return withConnection(superuserUrl, async (client) => {
    const { rows } = await client.query<{ tablename: string }>(
      "select tablename from pg_tables where schemaname = 'public'",
    );
    const texts: string[] = [];
    for (const { tablename } of rows) {
      const stored = await client.query<{ text: string }>(
        `select row_to_json(t)::text as text from public.${tablename} t`,
      );
      texts.push(...stored.rows.map(({ text }) => text));
    }
    return texts.join('\n');
  });
}

async function withConnection<Result>(url: string, work: (client: pg.Client) => Promise<Result>): Promise<Result> {
  const client = new pg.Client({ connectionString: url });
  await client.connect();
  try {
    return await work(client);
  } finally {
    await client.end();
  }
}
