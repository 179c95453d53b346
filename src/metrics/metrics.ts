import type { FastifyBaseLogger } from 'fastify';
import type pg from 'pg';
import { Counter, Gauge, Registry } from 'prom-client';
import type { SecretHasher } from '../crypto/secret-hash.ts';
import type { ChangeFeed } from '../database/change-feed.ts';
import type { Db } from '../database/client.ts';
import type { DatabaseClock } from '../database/clock.ts';
import { type ProblemCode, problemCodes } from '../domain/errors.ts';
import { type HistoryAction, historyActions } from '../domain/events.ts';
import type { Checkpoints } from '../history/checkpoints/signing.ts';
import { readDifferenceCounts } from '../history/state-audit.ts';
import type { Metrics } from '../http/metrics-routes.ts';
import { createRequestTimes, type RequestTimes } from '../http/request-times.ts';
import type { Job } from '../jobs/job.ts';
import { jobs } from '../jobs/list.ts';
import { stateOf } from '../jobs/policy.ts';
import { listJobRuns } from '../jobs/store.ts';
import { singleFlight } from '../lib/single-flight.ts';
import { countOpen, countOverdue } from '../recovery/store.ts';
import { type CredentialRefusal, credentialRefusals } from '../refused-requests/watch.ts';
import type { CacheLookups } from '../verification/key-cache.ts';
import type { UseLimits } from '../verification/limits.ts';
import { type VerdictCode, verdictCodes } from '../verification/policy.ts';
import type { Records } from '../verification/records.ts';
import { type AttemptOutcome, attemptOutcomes } from '../webhooks/policy.ts';
import { backlogOf } from '../webhooks/sending-store.ts';

/** What is counted while the service runs, by words of closed lists. */
export interface Tallies {
  times: RequestTimes;
  problems: Record<ProblemCode, number>;
  /** Requests of nobody who is known, by what they were refused with. */
  refusedCredentials: Record<CredentialRefusal, number>;
  verdicts: Record<VerdictCode, number>;
  events: Record<HistoryAction, number>;
  webhookAttempts: Record<AttemptOutcome, number>;
}

export function createTallies(): Tallies {
  return {
    times: createRequestTimes(),
    problems: zeros(problemCodes),
    refusedCredentials: zeros(credentialRefusals),
    verdicts: zeros(verdictCodes),
    events: zeros(historyActions),
    webhookAttempts: zeros(attemptOutcomes),
  };
}

/** @param actions of events that are committed now */
export function countEvents({ events }: Pick<Tallies, 'events'>, actions: readonly string[]): void {
  for (const action of actions as readonly HistoryAction[]) events[action] += 1;
}

function zeros<Word extends string>(words: readonly Word[]): Record<Word, number> {
  return Object.fromEntries(words.map((word) => [word, 0])) as Record<Word, number>;
}

export interface MetricsOptions {
  /** Where the process's own metrics are already, if anywhere. */
  registry?: Registry | undefined;
  version: string;
  tallies: Tallies;
  hasher: Pick<SecretHasher, 'runs' | 'queued'>;
  feed: Pick<ChangeFeed, 'isLive' | 'caughtUpAtMs'>;
  records: Records;
  limits: Pick<UseLimits, 'mode'>;
  pool: Pick<pg.Pool, 'totalCount' | 'idleCount' | 'waitingCount'>;
  db: Db;
  clock: DatabaseClock;
  checkpoints: Pick<Checkpoints, 'refused'>;
  logger: Pick<FastifyBaseLogger, 'warn'>;
}

/**
 * How the service is doing. Labels are words of closed lists, never an id or anything that a caller has sent.
 * docs/metrics.md lists them all.
 */
export function createMetrics(options: MetricsOptions): Metrics {
  const registry = options.registry ?? new Registry();
  defineOwn(registry, options);
  const readDatabase = defineDatabase(registry, options);
  return {
    contentType: registry.contentType,
    // Requests at the same time share one collection.
    text: singleFlight(async () => {
      await readDatabase();
      return (await options.tallies.times.text()) + (await registry.metrics());
    }),
  };
}

type Sample = [labels: Record<string, string>, value: number];

interface Metric {
  name: string;
  help: string;
  labels?: string[];
}

/** Told anew at each look. */
function counter(registry: Registry, { name, help, labels = [] }: Metric, read: () => Iterable<Sample>): void {
  new Counter({
    name: `latchkey_${name}`,
    help,
    labelNames: labels,
    registers: [registry],
    collect() {
      this.reset();
      for (const [of, value] of read()) this.inc(of, value);
    },
  });
}

function gauge(registry: Registry, { name, help, labels = [] }: Metric, read: () => Iterable<Sample>): void {
  new Gauge({
    name: `latchkey_${name}`,
    help,
    labelNames: labels,
    registers: [registry],
    collect() {
      this.reset();
      for (const [of, value] of read()) this.set(of, value);
    },
  });
}

function by(label: string, tally: Record<string, number>): Sample[] {
  return Object.entries(tally).map(([word, count]) => [{ [label]: word }, count]);
}

/** What this process knows of itself. */
function defineOwn(registry: Registry, options: MetricsOptions): void {
  const { tallies, hasher, feed, records, limits, pool, checkpoints } = options;
  gauge(registry, { name: 'build_info', help: 'Always 1.', labels: ['version', 'node'] }, () => [
    [{ version: options.version, node: process.version }, 1],
  ]);
  counter(
    registry,
    { name: 'problems_total', help: 'Requests refused or failed, by problem code.', labels: ['code'] },
    () => by('code', tallies.problems),
  );
  counter(
    registry,
    {
      name: 'refused_credentials_total',
      help: 'Requests whose credential was refused, by code; rate_limited: beyond what one address may try.',
      labels: ['code'],
    },
    () => by('code', tallies.refusedCredentials),
  );
  counter(registry, { name: 'verifications_total', help: 'Answers about API keys, by code.', labels: ['code'] }, () =>
    by('code', tallies.verdicts),
  );
  counter(
    registry,
    { name: 'history_events_total', help: 'Events that this process has recorded, by action.', labels: ['action'] },
    () => by('action', tallies.events),
  );
  counter(
    registry,
    { name: 'webhook_attempts_total', help: 'Calls of webhooks by this process, by outcome.', labels: ['outcome'] },
    () => by('outcome', tallies.webhookAttempts),
  );
  const caches = (read: (cache: Pick<Records['apiKeys'], 'lookups' | 'size'>, name: string) => Sample[]) => () => [
    ...read(records.apiKeys, 'api_keys'),
    ...read(records.accessTokens, 'access_tokens'),
  ];
  counter(
    registry,
    {
      name: 'record_cache_lookups_total',
      help: 'Lookups of keys and access tokens: in memory, read, known not to exist, or used though the database was silent.',
      labels: ['cache', 'result'],
    },
    caches(({ lookups }, cache) =>
      (Object.keys(lookups) as Array<keyof CacheLookups>).map((result) => [{ cache, result }, lookups[result]]),
    ),
  );
  gauge(
    registry,
    { name: 'record_cache_entries', help: 'Keys and access tokens in memory.', labels: ['cache'] },
    caches(({ size }, cache) => [[{ cache }, size]]),
  );
  gauge(
    registry,
    { name: 'listener_live', help: '1 while changes are heard of, and verification answers from memory.' },
    () => [[{}, Number(feed.isLive())]],
  );
  gauge(
    registry,
    { name: 'listener_age_seconds', help: 'How long ago all changes were last known to have been heard of.' },
    () => [[{}, (performance.now() - feed.caughtUpAtMs) / 1_000]],
  );
  gauge(
    registry,
    { name: 'limits_mode', help: 'Where rate limits of keys are counted now: 1.', labels: ['mode'] },
    () => [
      [{ mode: 'redis' }, Number(limits.mode === 'shared')],
      [{ mode: 'memory' }, Number(limits.mode === 'memory')],
    ],
  );
  counter(registry, { name: 'argon2_runs_total', help: 'argon2id runs that were begun.' }, () => [[{}, hasher.runs]]);
  gauge(registry, { name: 'argon2_waiting', help: 'argon2id runs that wait.' }, () => [[{}, hasher.queued]]);
  gauge(
    registry,
    { name: 'database_connections', help: 'Connections to Postgres that serve requests.', labels: ['state'] },
    () => [
      [{ state: 'idle' }, pool.idleCount],
      [{ state: 'busy' }, pool.totalCount - pool.idleCount],
    ],
  );
  gauge(
    registry,
    {
      name: 'history_checkpoints_refused',
      help: 'Chains of history that this replica refuses to sign, because they are not what was signed before.',
    },
    () => [[{}, checkpoints.refused()]],
  );
  gauge(registry, { name: 'database_waiting', help: 'Requests that wait for a connection to Postgres.' }, () => [
    [{}, pool.waitingCount],
  ]);
}

/** What is known of the whole installation, so every replica tells the same. @returns what reads it */
function defineDatabase(registry: Registry, { db, clock, logger }: MetricsOptions): () => Promise<void> {
  let known: Record<string, Sample[]> = {};
  const define = (metric: Metric) => gauge(registry, metric, () => known[metric.name] ?? []);
  const ofJob = (name: string, help: string) => define({ name: `job_${name}`, help, labels: ['name'] });
  ofJob('last_success_timestamp_seconds', 'When a background job last succeeded, on any replica.');
  ofJob('last_failure_timestamp_seconds', 'When a background job last failed, on any replica.');
  ofJob('last_duration_seconds', 'How long its last good run took.');
  ofJob('last_done', 'How many things its last good run did.');
  ofJob('overdue', '1 where a job has had no good run for three of its periods, or has never had one.');
  define({
    name: 'state_differences',
    help: 'Members of records that were not what history says, when all were compared last.',
    labels: ['kind'],
  });
  define({ name: 'state_compared_timestamp_seconds', help: 'When all records were last compared with history.' });
  define({ name: 'recovery_requests_open', help: 'Recovery requests that wait for an answer.' });
  define({ name: 'recovery_requests_overdue', help: 'Recovery requests whose answer is overdue.' });
  define({
    name: 'webhook_deliveries_pending',
    help: 'Deliveries that are not over, those that wait for a retry too.',
  });
  define({ name: 'webhook_oldest_due_seconds', help: 'How long the delivery that has waited longest has been due.' });
  define({ name: 'database_up', help: '1 where Postgres has told all that was asked for this look.' });

  const one = (value: number): Sample[] => [[{}, value]];
  const readers = [
    async () => {
      const runs = await listJobRuns(db);
      const ofRuns = (read: (run: (typeof runs)[number]) => number | null): Sample[] =>
        runs.flatMap((run): Sample[] => {
          const value = read(run);
          return value === null ? [] : [[{ name: run.name }, value]];
        });
      const byName = new Map(runs.map((run) => [run.name, run]));
      const now = new Date(clock.nowMs());
      const isOverdue = (job: Job) => Number(stateOf(job, byName.get(job.name), now) === 'overdue');
      const seconds = (at: Date | null) => (at === null ? null : at.getTime() / 1_000);
      return {
        job_last_success_timestamp_seconds: ofRuns((run) => seconds(run.last_succeeded_at)),
        job_last_failure_timestamp_seconds: ofRuns((run) => seconds(run.last_failed_at)),
        job_last_duration_seconds: ofRuns(({ last_duration_ms: ms }) => (ms === null ? null : ms / 1_000)),
        job_last_done: ofRuns((run) => run.last_count),
        job_overdue: jobs.map((job): Sample => [{ name: job.name }, isOverdue(job)]),
      };
    },
    async () => {
      const counts = await readDifferenceCounts(db);
      return {
        state_differences: counts.map(({ kind, count }): Sample => [{ kind }, count]),
        state_compared_timestamp_seconds: counts.slice(0, 1).map(({ at }): Sample => [{}, at.getTime() / 1_000]),
      };
    },
    async () => ({
      recovery_requests_open: one(await countOpen(db)),
      recovery_requests_overdue: one(await countOverdue(db, new Date(clock.nowMs()))),
    }),
    async () => {
      const { pending, oldestDueSeconds } = await backlogOf(db, new Date(clock.nowMs()));
      return { webhook_deliveries_pending: one(pending), webhook_oldest_due_seconds: one(oldestDueSeconds) };
    },
  ];
  return async () => {
    const settled = await Promise.allSettled(readers.map((read): Promise<Record<string, Sample[]>> => read()));
    // What could not be read is left out: the values of before would look like those of now.
    const read = settled.map((outcome) => (outcome.status === 'fulfilled' ? outcome.value : undefined));
    known = Object.assign({ database_up: one(Number(!read.includes(undefined))) }, ...read);
    for (const outcome of settled) {
      if (outcome.status === 'rejected') {
        logger.warn({ err: outcome.reason }, 'Metrics could not be read from the database.');
      }
    }
  };
}
