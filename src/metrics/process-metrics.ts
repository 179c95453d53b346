import type pg from 'pg';
import type { Registry } from 'prom-client';
import type { SecretHasher } from '../crypto/secret-hash.ts';
import type { ChangeFeed } from '../database/change-feed.ts';
import type { Checkpoints } from '../history/checkpoints/signing.ts';
import type { CacheLookups } from '../verification/key-cache.ts';
import type { UseLimits } from '../verification/limits.ts';
import type { Records } from '../verification/records.ts';
import { by, counter, gauge, type Sample } from './instruments.ts';
import type { Tallies } from './tallies.ts';

export interface ProcessMetricsOptions {
  version: string;
  tallies: Tallies;
  hasher: Pick<SecretHasher, 'runs' | 'queued'>;
  feed: Pick<ChangeFeed, 'isLive' | 'caughtUpAtMs'>;
  records: Records;
  limits: Pick<UseLimits, 'mode'>;
  pool: Pick<pg.Pool, 'totalCount' | 'idleCount' | 'waitingCount'>;
  checkpoints: Pick<Checkpoints, 'refused'>;
}

/** Defines the metrics whose values this process has in memory. */
export function defineProcessMetrics(registry: Registry, options: ProcessMetricsOptions): void {
  const { tallies, hasher, feed, records, limits, pool, checkpoints } = options;
  gauge(registry, { name: 'build_info', help: 'Always 1.', labels: ['version', 'node'] }, () => [
    [{ version: options.version, node: process.version }, 1],
  ]);
  counter(
    registry,
    { name: 'problems_total', help: 'Requests that were rejected or failed, by problem code.', labels: ['code'] },
    () => by('code', tallies.problems),
  );
  counter(
    registry,
    {
      name: 'refused_credentials_total',
      help: 'Requests with a rejected credential, by code. rate_limited: the address made too many attempts.',
      labels: ['code'],
    },
    () => by('code', tallies.refusedCredentials),
  );
  counter(
    registry,
    { name: 'verifications_total', help: 'Verifications of API keys, by resulting code.', labels: ['code'] },
    () => by('code', tallies.verdicts),
  );
  counter(
    registry,
    { name: 'history_events_total', help: 'Events that this process recorded, by action.', labels: ['action'] },
    () => by('action', tallies.events),
  );
  counter(
    registry,
    { name: 'leak_reports_total', help: 'Reports of leaked keys, by result.', labels: ['result'] },
    () => by('result', tallies.leakReports),
  );
  counter(
    registry,
    { name: 'webhook_attempts_total', help: 'Webhook calls by this process, by outcome.', labels: ['outcome'] },
    () => by('outcome', tallies.webhookAttempts),
  );
  const caches = (read: (cache: Pick<Records['apiKeys'], 'lookups' | 'size'>, name: string) => Sample[]) => () => [
    ...read(records.apiKeys, 'api_keys'),
    ...read(records.accessTokens, 'access_tokens'),
    ...read(records.importedPointers, 'imported_tokens'),
  ];
  counter(
    registry,
    {
      name: 'record_cache_lookups_total',
      help: 'Lookups of keys, access tokens and imported tokens, by result: found in memory, read from the database, known not to exist, or used although the database did not reply.',
      labels: ['cache', 'result'],
    },
    caches(({ lookups }, cache) =>
      (Object.keys(lookups) as Array<keyof CacheLookups>).map((result) => [{ cache, result }, lookups[result]]),
    ),
  );
  gauge(
    registry,
    { name: 'record_cache_entries', help: 'Keys, access tokens and imported tokens in memory.', labels: ['cache'] },
    caches(({ size }, cache) => [[{ cache }, size]]),
  );
  gauge(
    registry,
    { name: 'listener_live', help: '1 while the change feed is connected, so that verification uses the cache.' },
    () => [[{}, Number(feed.isLive())]],
  );
  gauge(
    registry,
    { name: 'listener_age_seconds', help: 'Seconds since the change feed was last known to be up to date.' },
    () => [[{}, (performance.now() - feed.caughtUpAtMs) / 1_000]],
  );
  gauge(
    registry,
    { name: 'limits_mode', help: 'Where rate limits of keys are counted: 1 for the current mode.', labels: ['mode'] },
    () => [
      [{ mode: 'redis' }, Number(limits.mode === 'shared')],
      [{ mode: 'memory' }, Number(limits.mode === 'memory')],
    ],
  );
  counter(registry, { name: 'argon2_runs_total', help: 'argon2id runs that were started.' }, () => [[{}, hasher.runs]]);
  gauge(registry, { name: 'argon2_waiting', help: 'argon2id runs that are queued.' }, () => [[{}, hasher.queued]]);
  gauge(
    registry,
    { name: 'database_connections', help: 'Connections to Postgres for requests, by state.', labels: ['state'] },
    () => [
      [{ state: 'idle' }, pool.idleCount],
      [{ state: 'busy' }, pool.totalCount - pool.idleCount],
    ],
  );
  gauge(
    registry,
    {
      name: 'history_checkpoints_refused',
      help: 'History chains that this replica does not sign, because they contradict their last checkpoint.',
    },
    () => [[{}, checkpoints.refused()]],
  );
  gauge(registry, { name: 'database_waiting', help: 'Requests that are waiting for a connection to Postgres.' }, () => [
    [{}, pool.waitingCount],
  ]);
}
