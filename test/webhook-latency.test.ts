import { setTimeout as delay } from 'node:timers/promises';
import t from 'tap';
import { type Json, startService, type TestService } from './support/app.ts';
import { eventually } from './support/process.ts';
import { makeWebhook, type Received, startReceiver, startSending } from './support/webhooks.ts';

// How long it takes from the commit to the arrival.

async function partnerOf({ admin }: TestService): Promise<Json> {
  const { body } = await admin.post('/v1/partners', { email: `${Math.random()}@p.example`, permissions: ['read'] });
  return body;
}

function quantile(values: readonly number[], share: number): number {
  const sorted = [...values].sort((one, other) => one - other);
  return sorted[Math.min(sorted.length - 1, Math.floor(share * sorted.length))] ?? Number.NaN;
}

t.test('one endpoint that hangs holds up nobody', async (t) => {
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
  await partnerOf(service);
  await eventually(async () => hanging.received.length === 1 && healthy.received.length === 20);
  healthy.received.length = 0;

  const rounds = 30;
  const replied = new Map<string, number>();
  for (let round = 0; round < rounds; round++) {
    const partner = await partnerOf(service);
    replied.set(partner.id, performance.now());
    await delay(250);
  }
  await eventually(async () => healthy.received.length === rounds * 20);
  const latencies = healthy.received.map((call: Received) => {
    const committedAt = replied.get(call.json.data.partnerId);
    if (committedAt === undefined) throw new Error('it tells of an event that never was');
    return Math.max(0, call.at - committedAt);
  });
  const [median, p99] = [quantile(latencies, 0.5), quantile(latencies, 0.99)];
  t.comment(
    `${latencies.length} deliveries beside a hanging one: median ${median.toFixed(1)} ms, p99 ${p99.toFixed(1)} ms`,
  );
  t.equal(hanging.received.length, 2, 'it was called twice at once, and hangs');
  t.ok(median < 100, `median ${median} ms`);
  t.ok(p99 < 2_000, `p99 ${p99} ms`);
});

t.test('from the commit to the arrival it takes moments, where nothing else is going on', async (t) => {
  const service = await startService(t);
  const receiver = await startReceiver(t);
  startSending(t, service);
  await makeWebhook(service, { url: receiver.url, events: ['partner.created'] });
  const latencies: number[] = [];
  for (let round = 0; round < 50; round++) {
    const before = receiver.received.length;
    const startedAt = performance.now();
    await partnerOf(service);
    await eventually(async () => receiver.received.length > before);
    // From before the request, so it is at most too long.
    latencies.push((receiver.received.at(-1)?.at ?? Number.NaN) - startedAt);
  }
  const median = quantile(latencies.slice(5), 0.5);
  t.comment(
    `idle: median ${median.toFixed(1)} ms, p99 ${quantile(latencies.slice(5), 0.99).toFixed(1)} ms, the request included`,
  );
  t.ok(median < 100, `median ${median} ms`);
});
