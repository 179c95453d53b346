import { isDeepStrictEqual } from 'node:util';
import { type Json, startService } from './support/app.ts';
import { dbQuery } from './support/database.ts';
import { keyringOf, keyringText } from './support/keyrings.ts';
import { eventually, runEntry } from './support/process.ts';
import { t } from './support/tap.ts';
import { deliveriesOf, makeWebhook, startReceiver } from './support/webhooks.ts';

const entry = 'k1';

t.test('the service sends webhooks itself, and only where its configuration allows', async (t) => {
  const service = await startService(t, { keyring: keyringOf(entry) });
  const receiver = await startReceiver(t);
  const webhook = await makeWebhook(service, { url: receiver.url, events: ['partner.created'] });
  await service.admin.post('/v1/partners', { email: 'p@p.example', permissions: ['read'] });
  const serve = async (env: NodeJS.ProcessEnv) => {
    const common = { PORT: '0', DATABASE_URL: service.urls.app, LATCHKEY_KEYRING: keyringText(entry) };
    const running = runEntry(t, 'server.ts', [], { env: { ...common, ...env } });
    await running.until(/listening/i);
    return async () => {
      running.child.kill('SIGTERM');
      t.same(await running.exited, { code: 0, signal: null });
    };
  };
  const untilRefused = async (reasons: string[]) => {
    const [{ attempts }] = await deliveriesOf(service, webhook);
    return isDeepStrictEqual(
      attempts.map(({ reason }: Json) => reason),
      reasons,
    );
  };
  const dueNow = () => dbQuery(service.urls.superuser, 'update webhook_deliveries set due_at = now()');
  const stopClosed = await serve({});
  await eventually(() => untilRefused(['url_refused']));
  await stopClosed();
  const stopHalfOpen = await serve({ WEBHOOK_ALLOW_HTTP: 'true' });
  await dueNow();
  await eventually(() => untilRefused(['url_refused', 'address_refused']));
  await stopHalfOpen();
  t.equal(receiver.received.length, 0);
  const stopOpen = await serve({ WEBHOOK_ALLOW_HTTP: 'true', WEBHOOK_ALLOW_CIDRS: '127.0.0.1' });
  await dueNow();
  await eventually(async () => receiver.received.length === 1);
  await stopOpen();
});
