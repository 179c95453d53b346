import { createDatabaseClock } from '../../src/database/clock.ts';
import { startJobs } from '../../src/jobs/runner.ts';
import { createLogger } from '../../src/service/logger.ts';
import { enqueueDeliveries } from '../../src/webhooks/enqueue-deliveries.ts';
import { keyringOf } from './keyrings.ts';

// A replica process whose job never ends: `hanging-job.ts <database URL> <job name>`.

const [url = '', name = ''] = process.argv.slice(2);
startJobs({
  url,
  jobs: [
    {
      name,
      description: 'Hangs.',
      schedule: '0 0 1 1 *',
      run: () => {
        process.stdout.write('it hangs\n');
        return new Promise<number>(() => undefined);
      },
    },
  ],
  settings: { usageHourlyDays: 1, retentionSeconds: 1 },
  keyring: keyringOf('test'),
  clock: createDatabaseClock(),
  onAppended: enqueueDeliveries,
  logger: createLogger({ level: 'warn', tokenPrefix: 'lk' }),
});
