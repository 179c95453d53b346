import { setTimeout as delay } from 'node:timers/promises';
import { jobs } from '../src/jobs/list.ts';
import { pruneDeliveries } from '../src/webhooks/delivery-store.ts';
import { enqueueDeliveries } from '../src/webhooks/enqueue-deliveries.ts';
import { type Json, startService, type TestService } from './support/app.ts';
import { dbQuery } from './support/database.ts';
import { eventually } from './support/process.ts';
import { t } from './support/tap.ts';
import { deliveriesOf, idOf, makeWebhook, startReceiver, startSending } from './support/webhooks.ts';

// Endpoints that fail, several senders beside each other, and what is done when all is well again.

const hourMs = 3_600_000;

async function happen({ admin }: TestService): Promise<string> {
  const input = { email: `${Math.random()}@p.example`, permissions: ['read'] };
  return (await admin.post('/v1/partners', input)).body.keys[0].id;
}

const settled = (service: TestService, webhook: Json, isAwaited: (delivery: Json) => boolean) =>
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
    await happen(service);
    await settled(service, webhook, ({ attempts }) => attempts.length === 1);
    const { failingSince } = (await admin.get(path)).body;
    t.ok(failingSince);

    await t.test('one success restarts the count', async (t) => {
      service.later(119 * hourMs);
      await settled(service, webhook, ({ attempts }) => attempts.length === 2);
      receiver.reply = (_, response) => void response.writeHead(204).end();
      service.later(hourMs);
      await settled(service, webhook, ({ status }) => status === 'delivered');
      t.match((await admin.get(path)).body, { status: 'enabled', failingSince: null });
      receiver.reply = (_, response) => void response.writeHead(503).end();
    });

    for (let event = 0; event < 6; event++) await happen(service);
    await settled(service, webhook, ({ attempts }) => attempts.length >= 1);
    service.later(119 * hourMs);
    await settled(service, webhook, ({ status, attempts }) => status === 'delivered' || attempts.length >= 2);
    t.equal((await admin.get(path)).body.status, 'enabled', 'not before');
    service.later(hourMs + 60_000);
    const disabled = await eventually(async () => {
      const { body } = await admin.get(path);
      return body.status === 'disabled' && body;
    });
    t.equal(disabled.disabledReason, 'failing');
    const deliveries = await settled(service, webhook, ({ status }) => status !== 'pending');
    t.equal(deliveries.filter(({ status }: Json) => status === 'failed').length, 6, 'what waits has failed');
    await eventually(async () => watcher.received.length > 0);
    await Promise.all(senders.map(({ close }) => close()));
    const { body: history } = await admin.get('/v1/history?action=webhook.disabled');
    t.equal(history.data.length, 1, 'of three senders one has said so');
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

    await t.test('enabled again, all that has failed since a time is sent again', async (t) => {
      startSending(t, service);
      receiver.reply = (_, response) => void response.writeHead(204).end();
      const again = (since: Date) => admin.post(`${path}/deliveries/redeliver`, { since: since.toISOString() });
      t.equal((await again(new Date(0))).body.code, 'conflict', 'not while it is disabled');
      t.match((await admin.post(`${path}/enable`)).body, { status: 'enabled', failingSince: null });
      t.same((await again(new Date(Date.now() + hourMs))).body, { deliveries: 0, isCutShort: false });
      const before = receiver.received.length;
      t.same((await again(new Date(0))).body, { deliveries: 6, isCutShort: false });
      await settled(service, webhook, ({ status }) => status === 'delivered');
      const ids = receiver.received.slice(before).map(idOf);
      t.same(
        new Set(ids),
        new Set(deliveries.filter(({ status }: Json) => status === 'failed').map(({ id }: Json) => id)),
      );
      const { body: recorded } = await admin.get('/v1/history?action=webhook.redelivered');
      t.match(recorded.data, [{ details: { webhookId: webhook.id, deliveryId: null, deliveries: 6 } }]);
      t.equal(recorded.data.length, 1, 'what changed nothing was not recorded');
    });
  },
);

t.test('what waits for an endpoint that is disabled or deleted is not sent any more', async (t) => {
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
  await happen(service);
  for (const webhook of webhooks) await settled(service, webhook, ({ attempts }) => attempts.length === 1);
  await admin.post(`/v1/webhooks/${disabled.id}/disable`);
  await admin.delete(`/v1/webhooks/${deleted.id}`);
  await eventually(async () => {
    const sql = "select endpoint_id from webhook_deliveries where status = 'pending'";
    return (await dbQuery(service.urls.app, sql)).every(({ endpoint_id }) => endpoint_id === live.id);
  });
  service.later(hourMs);
  await settled(service, live, ({ attempts }) => attempts.length === 2);
  t.equal(receiver.received.length, 4, 'one more, and that is of the one that is left');
});

t.test('at most two calls of one endpoint at once, however many senders there are', async (t) => {
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
  await Promise.all(Array.from({ length: 40 }, () => happen(service)));
  await settled(service, webhook, ({ status }) => status === 'delivered');
  t.equal(most, 2);
  t.equal(receiver.received.length, 40, 'and each event once, where nobody is killed');
});

t.test('a change of the URL or the secret holds for what waits already', async (t) => {
  const service = await startService(t);
  const { admin } = service;
  const [first, second] = [await startReceiver(t), await startReceiver(t)];
  first.reply = (_, response) => void response.writeHead(503).end();
  startSending(t, service);
  const webhook = await makeWebhook(service, { url: first.url, events: ['key.created'] });
  await happen(service);
  await settled(service, webhook, ({ attempts }) => attempts.length === 1);
  t.ok((await admin.get(`/v1/webhooks/${webhook.id}`)).body.failingSince);
  const patched = await admin.patch(`/v1/webhooks/${webhook.id}`, { url: second.url });
  t.match(patched.body, { url: second.url, failingSince: null }, 'the new one has not failed yet');
  t.same((await admin.get(`/v1/webhooks/${webhook.id}`)).body, patched.body);
  service.later(10_000);
  await settled(service, webhook, ({ status }) => status === 'delivered');
  t.same([first.received.length, second.received.length], [1, 1]);
  t.same(first.received.map(idOf), second.received.map(idOf));
});

t.test('a secret that does not open, or belongs to another endpoint, signs nothing', async (t) => {
  const service = await startService(t);
  const receiver = await startReceiver(t);
  const sending = startSending(t, service);
  const victim = await makeWebhook(service, { url: receiver.url, events: ['key.created'] });
  const other = await makeWebhook(service, { url: receiver.url, events: ['key.deleted'] });
  await dbQuery(
    service.urls.superuser,
    'update webhook_endpoints set sealed = (select sealed from webhook_endpoints where id = $2) where id = $1',
    [victim.id, other.id],
  );
  await happen(service);
  const [delivery] = await settled(service, victim, ({ attempts }) => attempts.length === 1);
  t.match(delivery, { status: 'pending', attempts: [{ status: null, reason: 'secret_unreadable' }] });
  t.equal(receiver.received.length, 0);
  t.match(sending.logLines.join(''), "A webhook's secret cannot be decrypted");
});

t.test('deliveries are kept for 30 days', async (t) => {
  const service = await startService(t);
  const webhook = await makeWebhook(service, { url: 'http://127.0.0.1:9/', events: ['key.created'] });
  for (let event = 0; event < 3; event++) await happen(service);
  startSending(t, service);
  await settled(service, webhook, ({ attempts }) => attempts.length === 1);
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
  t.equal((await dbQuery(urls.app, 'select 1 from webhook_attempts')).length, 2, 'attempts go with them');
  service.later(29 * 24 * hourMs);
  t.equal(await prune(), 0);
  service.later(24 * hourMs);
  t.equal(await pruneDeliveries({ db: client.db, clock }, 1), 2, 'in as many batches as it takes');
});
