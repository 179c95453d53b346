import type { Logger } from 'pino';
import type { Config } from '../config/config.ts';
import { isRestoredCopy, restoredCopyRemedy } from '../database/installation.ts';
import type { Transactor } from '../database/work.ts';
import { passingTracer, type Tracer } from '../domain/trace.ts';
import { jobs } from '../jobs/list.ts';
import { startJobs } from '../jobs/runner.ts';
import type { Tallies } from '../metrics/tallies.ts';
import { createWebhookClient } from '../webhooks/connector.ts';
import { type SendPayload, sendTask } from '../webhooks/enqueue-deliveries.ts';
import { parseRanges } from '../webhooks/public-address.ts';
import { startWebhookSender } from '../webhooks/sender.ts';

interface BackgroundDeps {
  transactor: Transactor;
  /** With the service's role, and without a transaction pooler. */
  listenUrl: string;
  tallies: Tallies;
  /** Undefined: no spans are recorded. */
  tracer: Tracer | undefined;
  logger: Logger;
}

/** The webhook sender and the jobs, which run in every replica. */
export interface Background {
  closeSender(): Promise<void>;
  closeJobs(): Promise<void>;
}

/** Starts the webhook sender and the jobs. A restored copy of another database sends no webhooks. */
export async function startBackground(config: Config, deps: BackgroundDeps): Promise<Background> {
  const { transactor, listenUrl, logger } = deps;
  const shared = { ...transactor, url: listenUrl, logger };
  const isCopy = await isRestoredCopy(transactor.db);
  if (isCopy) logger.warn(`This database was restored from another one. ${restoredCopyRemedy}`);
  const sender = isCopy
    ? undefined
    : startWebhookSender({
        ...shared,
        tokenPrefix: config.TOKEN_PREFIX,
        client: webhookClient(config),
        tally: deps.tallies.webhookAttempts,
        tracer: deps.tracer ?? passingTracer,
      });
  const jobRunner = startJobs({
    ...shared,
    jobs,
    tasks: { [sendTask]: (payload) => sender?.wake((payload as SendPayload).organizationId) },
    settings: { usageHourlyDays: config.USAGE_HOURLY_DAYS, retentionSeconds: config.RETENTION_SECONDS },
  });
  return {
    closeSender: async () => sender?.close(),
    closeJobs: () => jobRunner.close(),
  };
}

/** The HTTP client for webhooks, with the networks that the configuration allows. */
export function webhookClient({ WEBHOOK_ALLOW_HTTP, WEBHOOK_ALLOW_CIDRS }: Config) {
  return createWebhookClient({
    allowHttp: WEBHOOK_ALLOW_HTTP,
    allowedRanges: parseRanges(WEBHOOK_ALLOW_CIDRS ?? []),
  });
}
