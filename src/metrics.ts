import type { FastifyBaseLogger } from 'fastify';
import { Counter, Gauge, Registry } from 'prom-client';
import { type ProblemCode, problemCodes, problemKinds } from './core/errors.ts';
import type { Db } from './db/client.ts';
import { currentTime } from './db/work.ts';
import type { Checkpoints } from './history/checkpoints.ts';
import type { Metrics } from './http/metrics-routes.ts';
import { listJobRuns } from './jobs/store.ts';
import { countOverdue } from './recovery/store.ts';

interface MetricsOptions {
  db: Db;
  clockShiftMs: () => number;
  checkpoints: Pick<Checkpoints, 'refused'>;
  logger: Pick<FastifyBaseLogger, 'warn'>;
}

interface ServiceMetrics extends Metrics {
  /** Counts a request whose credential was refused, or that was not looked at any more. */
  countUnknownCaller(code: ProblemCode): void;
}

/** How the service is doing. No ids and no secrets are labels. */
export function createMetrics(options: MetricsOptions): ServiceMetrics {
  const registry = new Registry();
  const readers = [readJobs(registry, options), readRecovery(registry, options), readCheckpoints(registry, options)];
  return {
    contentType: registry.contentType,
    countUnknownCaller: countUnknownCallers(registry),
    async text() {
      // What is known of the whole installation is asked of the database when somebody looks.
      for (const read of readers) {
        await read().catch((err: unknown) =>
          options.logger.warn({ err }, 'Metrics could not be read from the database.'),
        );
      }
      return registry.metrics();
    },
  };
}

function countUnknownCallers(registry: Registry): (code: ProblemCode) => void {
  const counter = new Counter({
    name: 'latchkey_refused_credentials_total',
    help: 'Requests whose credential was refused, by code; rate_limited: beyond what one address may try.',
    labelNames: ['code'],
    registers: [registry],
  });
  // Each is there from the start, so that a first refusal shows as an increase.
  for (const code of problemCodes.filter((code) => [401, 429].includes(problemKinds[code].status)))
    counter.inc({ code }, 0);
  return (code) => counter.inc({ code });
}

function readJobs(registry: Registry, { db }: MetricsOptions): () => Promise<void> {
  const ofJob = (name: string, help: string) =>
    new Gauge({ name: `latchkey_job_${name}`, help, labelNames: ['job'], registers: [registry] });
  const succeeded = ofJob('last_success_timestamp_seconds', 'When a background job last succeeded, on any replica.');
  const failed = ofJob('last_failure_timestamp_seconds', 'When a background job last failed, on any replica.');
  const lasted = ofJob('last_duration_seconds', 'How long its last good run took.');
  const did = ofJob('last_count', 'How many things its last good run did.');
  return async () => {
    for (const run of await listJobRuns(db)) {
      const job = { job: run.name };
      if (run.last_succeeded_at !== null) succeeded.set(job, run.last_succeeded_at.getTime() / 1_000);
      if (run.last_failed_at !== null) failed.set(job, run.last_failed_at.getTime() / 1_000);
      if (run.last_duration_ms !== null) lasted.set(job, run.last_duration_ms / 1_000);
      if (run.last_count !== null) did.set(job, run.last_count);
    }
  };
}

function readRecovery(registry: Registry, { db, clockShiftMs }: MetricsOptions): () => Promise<void> {
  const overdue = new Gauge({
    name: 'latchkey_recovery_requests_overdue',
    help: 'Recovery requests whose answer is overdue.',
    registers: [registry],
  });
  return async () => overdue.set(await countOverdue(db, await currentTime(db, clockShiftMs)));
}

function readCheckpoints(registry: Registry, { checkpoints }: MetricsOptions): () => Promise<void> {
  const refused = new Gauge({
    name: 'latchkey_history_checkpoints_refused',
    help: 'Chains of history that this replica refuses to sign, because they are not what was signed before.',
    registers: [registry],
  });
  return async () => refused.set(checkpoints.refused());
}
