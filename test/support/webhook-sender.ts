import { createDatabaseClock } from '../../src/database/clock.ts';
import { startJobs } from '../../src/jobs/runner.ts';
import { createLogger } from '../../src/service/logger.ts';
import { createWebhookClient } from '../../src/webhooks/connector.ts';
import { enqueueDeliveries, type SendPayload, sendTask } from '../../src/webhooks/enqueue-deliveries.ts';
import { parseRanges } from '../../src/webhooks/public-address.ts';
import { startWebhookSender } from '../../src/webhooks/sender.ts';
import { keyringOf } from './keyrings.ts';

// A process that sends webhooks like a service: `webhook-sender.ts <database URL> <keyring entry>`.

const [url = '', entry = ''] = process.argv.slice(2);
const shared = {
  url,
  keyring: keyringOf(entry),
  clock: createDatabaseClock(),
  onAppended: enqueueDeliveries,
  logger: createLogger({ level: 'warn', tokenPrefix: 'lk' }),
};
const client = createWebhookClient({ allowHttp: true, allowedRanges: parseRanges(['127.0.0.0/8']) });
const sender = startWebhookSender({ ...shared, tokenPrefix: 'lk', client });
startJobs({
  ...shared,
  jobs: [],
  tasks: { [sendTask]: (payload) => sender.wake((payload as SendPayload).organizationId) },
  settings: { usageHourlyDays: 35, retentionSeconds: 2_592_000 },
});
process.stdout.write('it sends\n');
