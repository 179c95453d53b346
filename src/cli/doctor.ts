import { Socket } from 'node:net';
import { TLSSocket } from 'node:tls';
import { Command } from 'commander';
import { type Config, readConfig } from '../config/config.ts';
import { doubtfulVariables } from '../config/doubtful-variables.ts';
import { findForgedCredentials, organizationExists } from '../credentials/store.ts';
import type { Keyring } from '../crypto/keyring.ts';
import { connect, type DatabaseClient, type Db } from '../database/client.ts';
import { createDatabaseClock } from '../database/clock.ts';
import { currentTime } from '../database/credential.ts';
import { foreignSettings, requireUtf8 } from '../database/fitness.ts';
import { checkGuarantees } from '../database/guarantees.ts';
import {
  confirmInstallation,
  isRestoredCopy,
  restoredCopyRemedy,
  unknownKeyringIds,
} from '../database/installation.ts';
import { countKeyringUse } from '../database/keyring-use.ts';
import { requireCurrentSchema } from '../database/migrator.ts';
import { socketOf } from '../database/pg-internals.ts';
import { jobs } from '../jobs/list.ts';
import { type JobState, stateOf } from '../jobs/policy.ts';
import { type JobRun, listJobRuns } from '../jobs/store.ts';
import { minuteMs } from '../lib/durations.ts';
import { isWithin, toNetworks, unmapped } from '../lib/ip-address.ts';
import { fetchKeys } from '../oidc/issuer-keys.ts';
import { checkRedis } from '../verification/shared-limits.ts';
import { describeFailure, messageOf } from './failure.ts';
import { tellKeyringUse } from './keyring-use.ts';
import { locate } from './locate.ts';
import { counted, print, warning, wrong } from './print.ts';

/** Some of what is asked reads every key. */
const queryTimeoutMs = minuteMs;

const redisTimeoutMs = 5_000;

/** Ids of forged credentials that are printed at most. */
const forgedNamed = 100;

export function doctorCommand(env: NodeJS.ProcessEnv): Command {
  return new Command('doctor')
    .description('look at configuration, database and keyring, and say what is wrong; exit code 1 where something is')
    .action(async () => {
      const config = readConfig(env);
      print('ok      The configuration can be read.');
      for (const line of doubtfulVariables(env)) warning(line);
      const { url, keyring } = await locate(config);
      const connectTimeoutMs = config.DATABASE_TIMEOUT_MS;
      const client = connect({ url, poolSize: 2, timeoutMs: queryTimeoutMs, connectTimeoutMs });
      try {
        await examineConnection(client);
        await examine(client.db, config, keyring);
      } catch (error) {
        wrong(describeFailure(error, env));
      } finally {
        await client.close();
      }
    });
}

/** As this end sees it: behind a pooler the database would speak of the pooler's connection. */
async function examineConnection({ pool }: DatabaseClient): Promise<void> {
  const client = await pool.connect();
  const stream = socketOf(client);
  if (stream instanceof TLSSocket && stream.authorized) {
    print(
      `ok      The connection to Postgres is encrypted (${stream.getProtocol()}), and its certificate was verified.`,
    );
  } else if (stream instanceof TLSSocket) {
    warning(
      `The connection to Postgres is encrypted (${stream.getProtocol()}), but whose certificate it is was not verified: ` +
        'with sslmode=verify-full it is.',
    );
  } else if (stream instanceof Socket && staysHere(stream.remoteAddress)) {
    print('ok      The connection to Postgres is not encrypted, and does not leave this machine.');
  } else {
    warning('The connection to Postgres is not encrypted: sslmode=verify-full in DATABASE_URL encrypts it.');
  }
  client.release();
}

/** @param address undefined for a Unix socket */
function staysHere(address: string | undefined): boolean {
  return address === undefined || isWithin(toNetworks(['127.0.0.0/8', '::1']), unmapped(address));
}

/** Each line is a check; the first that makes the others pointless ends the examination by throwing. */
async function examine(db: Db, config: Config, keyring: Keyring): Promise<void> {
  await requireUtf8(db);
  await requireCurrentSchema(db);
  print('ok      The database can be reached, and its schema is current.');
  for (const id of await confirmInstallation(db, { tokenPrefix: config.TOKEN_PREFIX, keyring })) {
    wrong(
      `The stored check value of keyring entry ${id} was written without the keyring, and is ignored. ` +
        'Find out who used the database role of the service, then delete the row from keyring_entries as the owner.',
    );
  }
  print('ok      Prefix and keyring are those of this installation.');
  if (await isRestoredCopy(db)) warning(`This database was restored from another one. ${restoredCopyRemedy}`);
  const unknown = await unknownKeyringIds(db, keyring);
  if (unknown.length === 0) print('ok      The keyring has every entry that something was sealed under.');
  else
    wrong(
      `Something was sealed under ${unknown.join(', ')}, which the keyring lacks: keys cannot be revealed, webhooks not signed.`,
    );
  const forged = await findForgedCredentials(db, keyring);
  if (forged.length === 0) print('ok      The row of every credential was written by a holder of the keyring.');
  else {
    wrong(
      `${counted(forged.length, 'credential was', 'credentials were')} changed or written without the keyring, or the entry of ` +
        `their MAC is not in it; they are rejected: ${forged.slice(0, forgedNamed).join(', ')}. \`latchkey audit verify\` says ` +
        'what differs from the history. Replace them.',
    );
  }
  for (const line of tellKeyringUse(keyring, await countKeyringUse(db))) print(`note    ${line}`);
  for (const { name, value } of await foreignSettings(db)) {
    print(
      `note    ${name} is set to ${value || "''"} for the role or the database. Latchkey sets its own value on each connection; ` +
        'where a pooler shares connections by transaction, reset it: alter role … reset, alter database … reset.',
    );
  }
  for (const { name, kept, remedy } of await checkGuarantees(db)) {
    if (kept) print(`ok      ${name}.`);
    else if (mayBeMissing(config)) warning(`Not so: ${name}. ${remedy}`);
    else wrong(`Not so: ${name}. ${remedy}`);
  }
  await examineJobs(db);
  await examineRedis(config);
  await examineIssuer(db, config);
}

/** Whoever has a database of one's own with two roles counts on what they are for. */
function mayBeMissing({ LATCHKEY_STRICT, DATABASE_URL, MIGRATION_DATABASE_URL }: Config): boolean {
  const hasTwoRoles = MIGRATION_DATABASE_URL !== undefined && MIGRATION_DATABASE_URL !== DATABASE_URL;
  return !LATCHKEY_STRICT && !hasTwoRoles;
}

async function examineJobs(db: Db): Promise<void> {
  const now = await currentTime(db, createDatabaseClock());
  const runs = new Map((await listJobRuns(db)).map((run) => [run.name, run]));
  for (const job of jobs) {
    const run = runs.get(job.name);
    const state = stateOf(job, run, now);
    const told = tellJob(state, run);
    if (state === 'failed' || state === 'overdue') wrong(`Job ${job.name} ${told}`);
    else print(`ok      Job ${job.name} ${told}`);
  }
}

async function examineRedis({ REDIS_URL: url }: Config): Promise<void> {
  if (url === undefined) return;
  try {
    await checkRedis(url, redisTimeoutMs);
    print('ok      Redis counts rate limits for all replicas.');
  } catch (error) {
    wrong(
      `Redis does not count: ${messageOf(error)}. Until REDIS_URL leads to one that takes writes, each replica counts ` +
        'rate limits by itself.',
    );
  }
}

async function examineIssuer(db: Db, { oidc }: Config): Promise<void> {
  if (oidc === undefined) return;
  const { issuer, organization } = oidc;
  try {
    const { keys } = await fetchKeys(issuer);
    print(`ok      The identity provider ${issuer} answers, and publishes ${counted(keys.length, 'key')}.`);
  } catch (error) {
    wrong(`No keys of the identity provider ${issuer} can be fetched: ${messageOf(error)}. Is it as OIDC_ISSUER says?`);
  }
  const ids = 'id' in organization ? [organization.id] : [...(organization.ids?.values() ?? [])];
  for (const id of ids) {
    if (!(await organizationExists(db, id))) wrong(`There is no organization ${id}: nobody comes in whom that means.`);
  }
}

function tellJob(state: JobState, run: JobRun | undefined): string {
  const succeeded = run?.last_succeeded_at?.toISOString();
  const lastGood = succeeded === undefined ? 'it has never succeeded' : `it last succeeded ${succeeded}`;
  switch (state) {
    case 'not_started':
      return 'has not run yet: no service has been started.';
    case 'waiting':
      return 'has not run yet: it has not been due.';
    case 'good':
      return `last ran ${succeeded}: ${run?.last_count} done in ${run?.last_duration_ms} ms.`;
    case 'failed':
      return `failed ${run?.last_failed_at?.toISOString()} (${run?.last_error}); ${lastGood}. It is tried again; the log has more.`;
    case 'overdue':
      return `is overdue; ${lastGood}. Jobs run in the service: is one running, and what does its log say?`;
  }
}
