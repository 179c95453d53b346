import { Socket } from 'node:net';
import { TLSSocket } from 'node:tls';
import { Command } from 'commander';
import { type Config, readConfig } from '../config/config.ts';
import { doubtfulVariables } from '../config/doubtful-variables.ts';
import { checkCredentialRows } from '../credentials/store.ts';
import type { Keyring } from '../crypto/keyring.ts';
import { connect, type DatabaseClient, type Db } from '../database/client.ts';
import { createDatabaseClock } from '../database/clock.ts';
import { currentTime } from '../database/credential.ts';
import { foreignSettings, requireUtf8 } from '../database/fitness.ts';
import { checkGuarantees } from '../database/guarantees.ts';
import { confirmInstallation, isRestoredCopy, restoredCopyRemedy } from '../database/installation.ts';
import { countKeyringUse, type KeyringUse } from '../database/keyring-use.ts';
import { requireCurrentSchema } from '../database/migrator.ts';
import { socketOf } from '../database/pg-internals.ts';
import { jobs } from '../jobs/list.ts';
import { type JobState, stateOf } from '../jobs/policy.ts';
import { type JobRun, listJobRuns } from '../jobs/store.ts';
import { minuteMs } from '../lib/durations.ts';
import { isWithin, toNetworks, unmapped } from '../lib/ip-address.ts';
import { fetchKeys } from '../oidc/issuer-keys.ts';
import { organizationExists } from '../organizations/store.ts';
import { checkRedis } from '../verification/shared-limits.ts';
import { describeFailure, messageOf } from './failure.ts';
import { describeKeyringUse } from './keyring-use.ts';
import { locate } from './locate.ts';
import { counted, print, warning, wrong } from './print.ts';

/** Generous, because one check reads every key. */
const queryTimeoutMs = minuteMs;

const redisTimeoutMs = 5_000;

/** The most ids of forged credentials that are printed. */
const credentialsListed = 100;

export function doctorCommand(env: NodeJS.ProcessEnv): Command {
  return new Command('doctor')
    .description('check configuration, database and keyring; exit code 1 if something is wrong')
    .option('--every-key', 'check the row of every key, also if there are more than 100,000')
    .action(async ({ everyKey = false }: { everyKey?: boolean }) => {
      const config = readConfig(env);
      print('ok      The configuration can be read.');
      for (const line of doubtfulVariables(env)) warning(line);
      const { url, keyring } = await locate(config);
      const connectTimeoutMs = config.DATABASE_TIMEOUT_MS;
      const client = connect({ url, poolSize: 2, timeoutMs: queryTimeoutMs, connectTimeoutMs });
      try {
        await checkConnection(client);
        await check(client.db, { config, keyring, everyKey });
      } catch (error) {
        wrong(describeFailure(error, env));
      } finally {
        await client.close();
      }
    });
}

/** Looks at the connection's client side, because behind a pooler the database only knows the pooler's connection. */
async function checkConnection({ pool }: DatabaseClient): Promise<void> {
  const client = await pool.connect();
  const stream = socketOf(client);
  if (stream instanceof TLSSocket && stream.authorized) {
    print(
      `ok      The connection to Postgres is encrypted (${stream.getProtocol()}), and its certificate was verified.`,
    );
  } else if (stream instanceof TLSSocket) {
    warning(
      `The connection to Postgres is encrypted (${stream.getProtocol()}), but its certificate was not verified. ` +
        'Set sslmode=verify-full in DATABASE_URL.',
    );
  } else if (stream instanceof Socket && isLocal(stream.remoteAddress)) {
    print('ok      The connection to Postgres is not encrypted, and does not leave this machine.');
  } else {
    warning('The connection to Postgres is not encrypted. Set sslmode=verify-full in DATABASE_URL.');
  }
  client.release();
}

/** @param address undefined for a Unix socket */
function isLocal(address: string | undefined): boolean {
  return address === undefined || isWithin(toNetworks(['127.0.0.0/8', '::1']), unmapped(address));
}

interface CheckOptions {
  config: Config;
  keyring: Keyring;
  everyKey: boolean;
}

/** Runs all checks in order. Throws if a check fails that the later ones depend on. */
async function check(db: Db, { config, keyring, everyKey }: CheckOptions): Promise<void> {
  await requireUtf8(db);
  const schema = await requireCurrentSchema(db);
  print('ok      The database can be reached, and its schema is current.');
  for (const { name } of schema.unknown)
    print(`note    A newer version has applied ${name}. This version works with it.`);
  for (const { name } of schema.pending) {
    print(`note    ${name} is pending. If no replica of an older version is running, \`latchkey migrate\` applies it.`);
  }
  for (const id of await confirmInstallation(db, { tokenPrefix: config.TOKEN_PREFIX, keyring })) {
    wrong(
      `The stored check value of keyring entry ${id} was written without the keyring and is ignored. ` +
        'Find out who used the database role of the service, then delete the row from keyring_entries as the owner.',
    );
  }
  print('ok      TOKEN_PREFIX and the keyring belong to this installation.');
  if (await isRestoredCopy(db)) warning(`This database was restored from another one. ${restoredCopyRemedy}`);
  const uses = await countKeyringUse(db);
  const unknown = uses.filter((use) => keyring.get(use.keyringId) === undefined && sealsAnything(use));
  if (unknown.length === 0) print('ok      The keyring has the entry of every sealed value.');
  else
    wrong(
      `The keyring lacks ${unknown.map(({ keyringId }) => keyringId).join(', ')}, under which values are sealed: their keys cannot be revealed, their webhooks ` +
        'not signed, their claims not redeemed, and imported keys not moved to another entry.',
    );
  const { forged, withoutEntry, sampledFrom } = await checkCredentialRows(db, keyring, { all: everyKey });
  const listed = (ids: string[]) =>
    `${ids.length === 1 ? 'is' : 'are'} rejected: ${ids.slice(0, credentialsListed).join(', ')}`;
  if (forged.length > 0) {
    wrong(
      `${counted(forged.length, 'credential was', 'credentials were')} changed or written without the keyring, and ` +
        `${listed(forged)}. \`latchkey audit verify\` prints how they differ from the history. Replace them.`,
    );
  }
  if (withoutEntry.length > 0) {
    wrong(
      `${counted(withoutEntry.length, 'credential')} cannot be authenticated, because the keyring lacks an entry, and ` +
        `${listed(withoutEntry)}. The note about the entry says what to do.`,
    );
  }
  if (forged.length + withoutEntry.length === 0) {
    print(
      sampledFrom === undefined
        ? 'ok      The row of every credential was written with the keyring.'
        : `ok      The rows of all access tokens, and of a random sample of ${sampledFrom} keys, were written with the keyring. ` +
            '--every-key checks every key.',
    );
  }
  for (const line of describeKeyringUse(keyring, uses)) print(`note    ${line}`);
  for (const { name, value } of await foreignSettings(db)) {
    print(
      `note    ${name} is set to ${value || "''"} for the role or the database. Latchkey sets its own value on each connection; ` +
        'if a pooler shares connections by transaction, reset it: alter role … reset, alter database … reset.',
    );
  }
  for (const { name, kept, remedy } of await checkGuarantees(db)) {
    if (kept) print(`ok      ${name}.`);
    else if (mayBeMissing(config)) warning(`Not so: ${name}. ${remedy}`);
    else wrong(`Not so: ${name}. ${remedy}`);
  }
  await checkJobs(db);
  await checkRedisCounts(config);
  await checkIssuer(db, config);
}

/** Whether the entry seals what cannot be made again. */
function sealsAnything({ sealedKeys, sealedDigests, webhooks }: KeyringUse): boolean {
  return sealedKeys + sealedDigests + webhooks > 0;
}

/** Guarantees may be missing unless they are expected: with LATCHKEY_STRICT, or with two database roles. */
function mayBeMissing({ LATCHKEY_STRICT, DATABASE_URL, MIGRATION_DATABASE_URL }: Config): boolean {
  const hasTwoRoles = MIGRATION_DATABASE_URL !== undefined && MIGRATION_DATABASE_URL !== DATABASE_URL;
  return !LATCHKEY_STRICT && !hasTwoRoles;
}

async function checkJobs(db: Db): Promise<void> {
  const now = await currentTime(db, createDatabaseClock());
  const runs = new Map((await listJobRuns(db)).map((run) => [run.name, run]));
  for (const job of jobs) {
    const run = runs.get(job.name);
    const state = stateOf(job, run, now);
    const text = describeJob(state, run);
    if (state === 'failed' || state === 'overdue') wrong(`Job ${job.name} ${text}`);
    else print(`ok      Job ${job.name} ${text}`);
  }
}

async function checkRedisCounts({ REDIS_URL: url }: Config): Promise<void> {
  if (url === undefined) return;
  try {
    await checkRedis(url, redisTimeoutMs);
    print('ok      Redis counts rate limits for all replicas.');
  } catch (error) {
    wrong(
      `Redis cannot count rate limits: ${messageOf(error)}. Until REDIS_URL points to a Redis that accepts writes, each replica counts ` +
        'by itself.',
    );
  }
}

async function checkIssuer(db: Db, { oidc }: Config): Promise<void> {
  if (oidc === undefined) return;
  const { issuer, organization } = oidc;
  try {
    const { keys } = await fetchKeys(issuer);
    print(`ok      The identity provider ${issuer} is reachable and publishes ${counted(keys.length, 'key')}.`);
  } catch (error) {
    wrong(
      `The keys of the identity provider ${issuer} cannot be fetched: ${messageOf(error)}. Is OIDC_ISSUER correct?`,
    );
  }
  const ids = 'id' in organization ? [organization.id] : [...(organization.ids?.values() ?? [])];
  for (const id of ids) {
    if (!(await organizationExists(db, id)))
      wrong(`Organization ${id} of the OIDC settings does not exist. Its users are rejected.`);
  }
}

function describeJob(state: JobState, run: JobRun | undefined): string {
  const succeeded = run?.last_succeeded_at?.toISOString();
  const lastGood = succeeded === undefined ? 'it has never succeeded' : `it last succeeded ${succeeded}`;
  switch (state) {
    case 'not_started':
      return 'has not run yet: no service was started.';
    case 'waiting':
      return 'has not run yet: it is not due.';
    case 'good':
      return `last ran ${succeeded}: ${run?.last_count} done in ${run?.last_duration_ms} ms.`;
    case 'failed':
      return `failed ${run?.last_failed_at?.toISOString()} (${run?.last_error}); ${lastGood}. Latchkey will retry. The log has details.`;
    case 'overdue':
      return `is overdue; ${lastGood}. Jobs run in the service: is a service running, and what is in its log?`;
  }
}
