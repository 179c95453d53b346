import { type Json, startService, type TestService } from './support/app.ts';
import { eventually } from './support/process.ts';
import { t } from './support/tap.ts';
import { makeWebhook, startReceiver, startSending } from './support/webhooks.ts';

// The time from commit to arrival. The bound also holds on a busy machine.

const withinMs = 2_000;

async function addPartner({ admin }: TestService): Promise<Json> {
  const { body } = await admin.post('/v1/partners', { email: `${Math.random()}@p.example`, permissions: ['read'] });
  return body;
}

t.test('an endpoint that hangs does not delay others', async (t) => {
  const service = await startService(t);
  const hanging = await startReceiver(t);
  const healthy = await startReceiver(t);
  hanging.reply = () => undefined;
  startSending(t, service);
  await makeWebhook(service, { url: hanging.url, events: ['partner.created'] });
  for (let count = 0; count < 20; count++) {
    const { href } = new URL(`/${count}`, healthy.url);
    await makeWebhook(service, { url: href, events: ['partner.created'] });
  }
  await addPartner(service);
  await eventually(async () => hanging.received.length === 1 && healthy.received.length === 20);

  for (let event = 0; event < 10; event++) {
    healthy.received.length = 0;
    const partner = await addPartner(service);
    const committedAt = performance.now();
    await eventually(async () => healthy.received.length === 20);
    const slowestMs = Math.max(...healthy.received.map(({ at }) => at - committedAt));
    t.ok(slowestMs < withinMs, `the slowest of 20 deliveries took ${slowestMs.toFixed(1)} ms`);
    t.ok(healthy.received.every(({ json }) => json.data.partnerId === partner.id));
  }
  t.ok(hanging.received.length >= 2, 'the hanging endpoint was called twice at once');
});

t.test('each delivery arrives within two seconds of its commit', async (t) => {
  const service = await startService(t);
  const receiver = await startReceiver(t);
  startSending(t, service);
  await makeWebhook(service, { url: receiver.url, events: ['partner.created'] });
  for (let event = 1; event <= 15; event++) {
    await addPartner(service);
    const committedAt = performance.now();
    await eventually(async () => receiver.received.length === event);
    const tookMs = (receiver.received.at(-1)?.at ?? Number.NaN) - committedAt;
    t.ok(tookMs < withinMs, `${tookMs.toFixed(1)} ms`);
  }
});
