import { randomBytes } from 'node:crypto';
import pg from 'pg';

/** The environment variable by which `test/run.ts` passes the Postgres to the test files. */
export const clusterVariable = 'LATCHKEY_TEST_CLUSTER';

/** A database as its three roles see it; each test replaces the database name in the path. */
export interface ClusterUrls {
  superuser: string;
  owner: string;
  app: string;
}

/** What `test/run.ts` passes to the test files. */
export interface TestCluster {
  urls: ClusterUrls;
  /** A migrated database that each test copies. */
  template: string;
}

export interface TestRoles {
  urls: ClusterUrls;
  drop(): Promise<void>;
}

/** Roles belong to the whole cluster, so each run has its own, which are dropped when it ends. */
export async function makeTestRoles(superuserUrl: string): Promise<TestRoles> {
  const run = randomBytes(4).toString('hex');
  const password = randomBytes(16).toString('hex');
  const names = { owner: `latchkey_owner_${run}`, app: `latchkey_app_${run}` };
  const query = async (...statements: string[]) => {
    const client = new pg.Client({ connectionString: superuserUrl });
    await client.connect();
    try {
      for (const statement of statements) await client.query(statement);
    } finally {
      await client.end();
    }
  };
  await query(
    // Each iteration of SCRAM slows every connection of every test, and the roles are dropped after the run.
    "select set_config(name, '1', false) from pg_settings where name = 'scram_iterations'",
    `create role ${names.owner} login password '${password}'`,
    `create role ${names.app} login password '${password}'`,
  );
  const urlOf = (role: string) => {
    const url = new URL(superuserUrl);
    url.username = role;
    url.password = password;
    return url.href;
  };
  return {
    urls: { superuser: superuserUrl, owner: urlOf(names.owner), app: urlOf(names.app) },
    drop: () => query(`drop role if exists ${names.app}`, `drop role if exists ${names.owner}`),
  };
}

export function testCluster(): TestCluster {
  const text = process.env[clusterVariable];
  if (text === undefined) throw new Error('Run the tests with `npm test`, which starts a Postgres for them.');
  return JSON.parse(text) as TestCluster;
}

export function clusterUrls(): ClusterUrls {
  return testCluster().urls;
}
