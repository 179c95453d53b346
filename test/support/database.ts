import { randomBytes } from 'node:crypto';
import pg from 'pg';
import type { Test } from 'tap';
import { connect } from '../../src/db/client.ts';
import { migrate } from '../../src/db/migrator.ts';
import { type ClusterUrls, clusterUrls } from './cluster.ts';

/** A database of its own, dropped when the test ends. */
export async function createDatabase(
  t: Test,
  options: { migrated: boolean } = { migrated: true },
): Promise<ClusterUrls> {
  const name = `latchkey_test_${randomBytes(6).toString('hex')}`;
  const cluster = clusterUrls();
  await dbQuery(cluster.superuser, `create database ${name} owner ${roleOf(cluster.owner)}`);
  t.teardown(() => dbQuery(cluster.superuser, `drop database ${name} with (force)`));
  const urls = {
    superuser: withDatabase(cluster.superuser, name),
    owner: withDatabase(cluster.owner, name),
    app: withDatabase(cluster.app, name),
  };
  if (options.migrated) await migrateAs(urls);
  return urls;
}

export async function migrateAs(urls: ClusterUrls): Promise<string[]> {
  const owner = connect({ url: urls.owner, poolSize: 2 });
  try {
    return await migrate(owner, { appRole: roleOf(urls.app) });
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

/** Asks the database directly, as the role in the URL. */
export async function dbQuery(
  url: string,
  sql: string,
  values: unknown[] = [],
): Promise<Array<Record<string, unknown>>> {
  const client = new pg.Client({ connectionString: url });
  await client.connect();
  try {
    const result = await client.query<Record<string, unknown>>(sql, values);
    return result.rows;
  } finally {
    await client.end();
  }
}

/** Everything that the database keeps, as text; binary columns come as they are and as hex. */
export async function dbDump(superuserUrl: string): Promise<string> {
  const tables = await dbQuery(superuserUrl, "select tablename from pg_tables where schemaname = 'public'");
  const texts: string[] = [];
  for (const { tablename } of tables) {
    const rows = await dbQuery(superuserUrl, `select row_to_json(t)::text as text from public.${String(tablename)} t`);
    for (const { text } of rows) texts.push(String(text));
  }
  return texts.join('\n');
}
