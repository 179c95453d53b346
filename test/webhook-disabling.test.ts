import { setTimeout as delay } from 'node:timers/promises';
import { jobs } from '../src/jobs/list.ts';
import { pruneDeliveries } from '../src/webhooks/delivery-store.ts';
import { enqueueDeliveries } from '../src/webhooks/enqueue-deliveries.ts';
import { type Json, startService, type TestService } from './support/app.ts';
import { dbQuery } from './support/database.ts';
import { eventually } from './support/process.ts';
import { t } from './support/tap.ts';
import { deliveriesOf, idOf, makeWebhook, startReceiver, startSending } from './support/webhooks.ts';

const hourMs = 3_600_000;

async function causeEvent({ admin }: TestService): Promise<string> {
  const input = { email: `${Math.random()}@p.example`, permissions: ['read'] };
  return (await admin.post('/v1/partners', input)).body.keys[0].id;
}

const untilDeliveries = (service: TestService, webhook: Json, isAwaited: (delivery: Json) => boolean) =>
  eventually(async () => {
    const deliveries = await deliveriesOf(service, webhook);
    return deliveries.length > 0 && deliveries.every(isAwaited) && deliveries;
  });

t.test(
  'after 120 hours of failures only, an endpoint is disabled once, and the organization is notified',
  async (t) => {
    const service = await startService(t);
    const { admin } = service;
    const receiver = await startReceiver(t);
    const watcher = await startReceiver(t);
    receiver.reply = (_, response) => void response.writeHead(503).end();
    const senders = [startSending(t, service), startSending(t, service), startSending(t, service)];
    const webhook = await makeWebhook(service, { url: receiver.url, events: ['key.created'] });
    await makeWebhook(service, { url: watcher.url, events: ['webhook.disabled'] });
    const path = `/v1/webhooks/${webhook.id}`;
    await causeEvent(service);
    await untilDeliveries(service, webhook, ({ attempts }) => attempts.length === 1);
    const { failingSince } = (await admin.get(path)).body;
    t.ok(failingSince);

    await t.test('one success restarts the count', async (t) => {
      service.later(119 * hourMs);
      await untilDeliveries(service, webhook, ({ attempts }) => attempts.length === 2);
      receiver.reply = (_, response) => void response.writeHead(204).end();
      service.later(hourMs);
      await untilDeliveries(service, webhook, ({ status }) => status === 'delivered');
      t.match((await admin.get(path)).body, { status: 'enabled', failingSince: null });
      receiver.reply = (_, response) => void response.writeHead(503).end();
    });

    for (let event = 0; event < 6; event++) await causeEvent(service);
    await untilDeliveries(service, webhook, ({ attempts }) => attempts.length >= 1);
    service.later(119 * hourMs);
    await untilDeliveries(service, webhook, ({ status, attempts }) => status === 'delivered' || attempts.length >= 2);
    t.equal((await admin.get(path)).body.status, 'enabled', 'not before');
    service.later(hourMs + 60_000);
    const disabled = await eventually(async () => {
      const { body } = await admin.get(path);
      return body.status === 'disabled' && body;
    });
    t.equal(disabled.disabledReason, 'failing');
    const deliveries = await untilDeliveries(service, webhook, ({ status }) => status !== 'pending');
    t.equal(deliveries.filter(({ status }: Json) => status === 'failed').length, 6, 'pending deliveries have failed');
    await eventually(async () => watcher.received.length > 0);
    await Promise.all(senders.map(({ close }) => close()));
    const { body: history } = await admin.get('/v1/history?action=webhook.disabled');
    t.equal(history.data.length, 1, 'only one of three senders recorded it');
    t.match(history.data[0], {
      actor: { type: 'system', id: 'webhooks' },
      request: null,
      details: { webhookId: webhook.id, reason: 'failing', failingSince: disabled.failingSince },
    });
    t.same(
      watcher.received.map(({ json }) => [json.type, json.data.sequence]),
      [['webhook.disabled', history.data[0].sequence]],
    );
    t.match((await admin.get('/v1/history/verify')).body, { valid: true });

    await t.test('after it is enabled, all deliveries that failed since a time can be sent again', async (t) => {
      startSending(t, service);
      receiver.reply = (_, response) => void response.writeHead(204).end();
      const again = (since: Date) => admin.post(`${path}/deliveries/redeliver`, { since: since.toISOString() });
      t.equal((await again(new Date(0))).body.code, 'conflict', 'rejected while it is disabled');
      t.match((await admin.post(`${path}/enable`)).body, { status: 'enabled', failingSince: null });
      t.same((await again(new Date(Date.now() + hourMs))).body, { deliveries: 0, isCutShort: false });
      const before = receiver.received.length;
      t.same((await again(new Date(0))).body, { deliveries: 6, isCutShort: false });
      await untilDeliveries(service, webhook, ({ status }) => status === 'delivered');
      const ids = receiver.received.slice(before).map(idOf);
      t.same(
        new Set(ids),
        new Set(deliveries.filter(({ status }: Json) => status === 'failed').map(({ id }: Json) => id)),
      );
      const { body: recorded } = await admin.get('/v1/history?action=webhook.redelivered');
      t.match(recorded.data, [{ details: { webhookId: webhook.id, deliveryId: null, deliveries: 6 } }]);
      t.equal(recorded.data.length, 1, 'a request without an effect was not recorded');
    });
  },
);

t.test('pending deliveries of a disabled or deleted endpoint are not sent', async (t) => {
  const service = await startService(t);
  const { admin } = service;
  const receiver = await startReceiver(t);
  receiver.reply = (_, response) => void response.writeHead(503).end();
  startSending(t, service);
  const webhooks: Json[] = [];
  for (let index = 0; index < 3; index++) {
    webhooks.push(await makeWebhook(service, { url: receiver.url, events: ['key.created'] }));
  }
  const [disabled, deleted, live] = webhooks;
  await causeEvent(service);
  for (const webhook of webhooks) await untilDeliveries(service, webhook, ({ attempts }) => attempts.length === 1);
  await admin.post(`/v1/webhooks/${disabled.id}/disable`);
  await admin.delete(`/v1/webhooks/${deleted.id}`);
  await eventually(async () => {
    const sql = "select endpoint_id from webhook_deliveries where status = 'pending'";
    return (await dbQuery(service.urls.app, sql)).every(({ endpoint_id }) => endpoint_id === live.id);
  });
  service.later(hourMs);
  await untilDeliveries(service, live, ({ attempts }) => attempts.length === 2);
  t.equal(receiver.received.length, 4, 'only the remaining endpoint received another delivery');
});

t.test('an endpoint gets at most two calls at once, however many senders there are', async (t) => {
  const service = await startService(t);
  const receiver = await startReceiver(t);
  let underWay = 0;
  let most = 0;
  receiver.reply = async (_, response) => {
    underWay += 1;
    most = Math.max(most, underWay);
    await delay(30);
    underWay -= 1;
    response.writeHead(204).end();
  };
  for (let count = 0; count < 3; count++) startSending(t, service);
  const webhook = await makeWebhook(service, { url: receiver.url, events: ['key.created'] });
  await Promise.all(Array.from({ length: 40 }, () => causeEvent(service)));
  await untilDeliveries(service, webhook, ({ status }) => status === 'delivered');
  t.equal(most, 2);
  t.equal(receiver.received.length, 40, 'each event arrived once');
});

t.test('a changed URL also applies to pending deliveries', async (t) => {
  const service = await startService(t);
  const { admin } = service;
  const [first, second] = [await startReceiver(t), await startReceiver(t)];
  first.reply = (_, response) => void response.writeHead(503).end();
  startSending(t, service);
  const webhook = await makeWebhook(service, { url: first.url, events: ['key.created'] });
  await causeEvent(service);
  await untilDeliveries(service, webhook, ({ attempts }) => attempts.length === 1);
  t.ok((await admin.get(`/v1/webhooks/${webhook.id}`)).body.failingSince);
  const patched = await admin.patch(`/v1/webhooks/${webhook.id}`, { url: second.url });
  t.match(patched.body, { url: second.url, failingSince: null }, 'the new URL has not failed yet');
  t.same((await admin.get(`/v1/webhooks/${webhook.id}`)).body, patched.body);
  service.later(10_000);
  await untilDeliveries(service, webhook, ({ status }) => status === 'delivered');
  t.same([first.received.length, second.received.length], [1, 1]);
  t.same(first.received.map(idOf), second.received.map(idOf));
});

t.test('a secret that cannot be unsealed, or belongs to another endpoint, signs nothing', async (t) => {
  const service = await startService(t);
  const receiver = await startReceiver(t);
  const sending = startSending(t, service);
  const affected = await makeWebhook(service, { url: receiver.url, events: ['key.created'] });
  const other = await makeWebhook(service, { url: receiver.url, events: ['key.deleted'] });
  await dbQuery(
    service.urls.superuser,
    'update webhook_endpoints set sealed = (select sealed from webhook_endpoints where id = $2) where id = $1',
    [affected.id, other.id],
  );
  await causeEvent(service);
  const [delivery] = await untilDeliveries(service, affected, ({ attempts }) => attempts.length === 1);
  t.match(delivery, { status: 'pending', attempts: [{ status: null, reason: 'secret_unreadable' }] });
  t.equal(receiver.received.length, 0);
  t.match(sending.logLines.join(''), "A webhook's secret cannot be decrypted");
});

t.test('deliveries are deleted after 30 days', async (t) => {
  const service = await startService(t);
  const webhook = await makeWebhook(service, { url: 'http://127.0.0.1:9/', events: ['key.created'] });
  for (let event = 0; event < 3; event++) await causeEvent(service);
  startSending(t, service);
  await untilDeliveries(service, webhook, ({ attempts }) => attempts.length === 1);
  const job = jobs.find(({ name }) => name === 'prune_webhook_deliveries');
  const { urls, client, keyring, clock } = service;
  const prune = () =>
    job?.run({
      transactor: { db: client.db, keyring, clock, onAppended: enqueueDeliveries },
      settings: { usageHourlyDays: 1, retentionSeconds: 1 },
      logger: service.app.log,
      signal: new AbortController().signal,
    });
  await dbQuery(
    urls.superuser,
    "update webhook_deliveries set created_at = created_at - interval '30 days' where id in (select min(id) from webhook_deliveries)",
  );
  t.equal(await prune(), 1);
  t.equal((await deliveriesOf(service, webhook)).length, 2);
  t.equal((await dbQuery(urls.app, 'select 1 from webhook_attempts')).length, 2, 'their attempts are deleted too');
  service.later(29 * 24 * hourMs);
  t.equal(await prune(), 0);
  service.later(24 * hourMs);
  t.equal(await pruneDeliveries({ db: client.db, clock }, 1), 2, 'in several batches');
});
