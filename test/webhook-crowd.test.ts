import { isDeepStrictEqual } from 'node:util';
import { newId, type OrganizationId, type WebhookId } from '../src/domain/ids.ts';
import { deliveryMac } from '../src/webhooks/delivery-mac.ts';
import { mintSecret } from '../src/webhooks/mint.ts';
import { startService, type TestService } from './support/app.ts';
import { dbQuery } from './support/database.ts';
import { listenRaw } from './support/listeners.ts';
import { eventually } from './support/process.ts';
import { t } from './support/tap.ts';
import { idOf, makeWebhook, startReceiver, startSending } from './support/webhooks.ts';

/** Creates endpoints that failed before, each with due deliveries, in one statement. */
async function dbMakeEndpoints(
  service: TestService,
  options: { url: string; count: number; due: number },
): Promise<void> {
  const organizationId = service.organizationId as OrganizationId;
  const rows = Array.from({ length: options.count }, () => {
    const id = newId('webhook');
    const endpoint = { id, organization_id: organizationId, partner_id: null, url: options.url };
    return { id, ...mintSecret(service.keyring, endpoint).columns };
  });
  const params = [
    organizationId,
    options.url,
    rows.map(({ id }) => id),
    rows.map(({ sealed }) => sealed),
    service.keyring.primary.id,
  ];
  await dbQuery(
    service.urls.superuser,
    `insert into webhook_endpoints
       (id, organization_id, url, events, sealed, sealed_keyring_id, created_at, created_by, failing_since)
     select id, $1, $2, '{key.purged}', sealed, $5, now(), '{"type":"system","id":"x","name":"x","email":null}', now() from unnest($3::text[], $4::bytea[]) as made (id, sealed)`,
    params,
  );
  await dbMakeDeliveries(service, 'pending', options.due);
}

/** For each endpoint that receives key.purged. */
async function dbMakeDeliveries(service: TestService, status: 'pending' | 'failed', count: number): Promise<void> {
  const { urls, keyring } = service;
  const endpoints = await dbQuery(urls.app, "select id from webhook_endpoints where events = '{key.purged}'");
  const [event] = await dbQuery(urls.app, 'select canonical from history where chain = $1 and sequence = 1', [
    service.organizationId,
  ]);
  const rows = endpoints.flatMap(({ id: endpointId }) =>
    Array.from({ length: count }, () => {
      const delivery = {
        id: newId('delivery'),
        endpointId: endpointId as WebhookId,
        sequence: 1,
        action: 'key.purged',
      };
      return { ...delivery, ...deliveryMac(keyring, { ...delivery, canonical: String(event?.['canonical']) }) };
    }),
  );
  await dbQuery(
    urls.superuser,
    `insert into webhook_deliveries
       (id, endpoint_id, sequence, action, mac, mac_keyring_id, status, due_at, created_at, finished_at)
     select id, endpoint_id, 1, 'key.purged', mac, $5, $1, now(), now(), case when $1 = 'failed' then now() end
     from unnest($2::text[], $3::text[], $4::bytea[]) as made (id, endpoint_id, mac)`,
    [
      status,
      rows.map(({ id }) => id),
      rows.map(({ endpointId }) => endpointId),
      rows.map(({ mac }) => mac),
      keyring.primary.id,
    ],
  );
}

t.test('while hundreds of receivers hang, a healthy one receives its deliveries', async (t) => {
  const service = await startService(t);
  const hanging = await listenRaw(t, (socket) => socket.resume());
  const receiver = await startReceiver(t);
  await makeWebhook(service, { url: receiver.url, events: ['key.created'] });
  await dbMakeEndpoints(service, { url: `http://127.0.0.1:${hanging.port}/`, count: 300, due: 2 });
  startSending(t, service, { timeoutMs: 25_000 });
  await eventually(async () => hanging.open() >= 480, 60_000);
  const waitsMs: number[] = [];
  for (let event = 0; event < 5; event++) {
    const startedAt = performance.now();
    await service.admin.post('/v1/keys', {}).then(({ body }) => service.admin.delete(`/v1/keys/${body.id}`));
    await eventually(async () => receiver.received.length === event + 1);
    waitsMs.push(performance.now() - startedAt);
  }
  t.comment(`${hanging.open()} hang; the other one heard after ${waitsMs.map(Math.round).join(', ')} ms`);
  t.ok(Math.max(...waitsMs) < 10_000, 'it did not wait for a hanging call');
  t.ok(hanging.open() <= 510, `${hanging.open()} of 600 calls hang at once`);
  t.equal(new Set(receiver.received.map(idOf)).size, 5);
});

t.test(
  'of more failed deliveries than 10,000, the first 10,000 are sent again, and the reply says that more remain',
  async (t) => {
    const service = await startService(t);
    const { admin } = service;
    const receiver = await startReceiver(t);
    const webhook = await makeWebhook(service, { url: receiver.url, events: ['key.purged'] });
    await dbMakeDeliveries(service, 'failed', 10_003);
    const redeliver = async () => {
      const since = new Date(0).toISOString();
      return (await admin.post(`/v1/webhooks/${webhook.id}/deliveries/redeliver`, { since })).body;
    };
    t.same(await redeliver(), { deliveries: 10_000, isCutShort: true });
    t.same(await redeliver(), { deliveries: 3, isCutShort: false });
    t.same(await redeliver(), { deliveries: 0, isCutShort: false });

    await t.test('all pending deliveries of a failed endpoint fail, however many there are', async (t) => {
      const statuses = () =>
        dbQuery(service.urls.app, 'select status, count(*)::int from webhook_deliveries group by 1 order by 1');
      t.same(await statuses(), [{ status: 'pending', count: 10_003 }]);
      startSending(t, service);
      await eventually(async () => receiver.received.length >= 100);
      // Deliveries that are not due are not selected.
      const later = "update webhook_deliveries set due_at = due_at + interval '1 hour'";
      await dbQuery(service.urls.superuser, `${later} where status = 'pending' and leased_until is null`);
      await admin.post(`/v1/webhooks/${webhook.id}/disable`);
      await eventually(async () => {
        const delivered = receiver.received.length;
        const expected = [
          { status: 'delivered', count: delivered },
          { status: 'failed', count: 10_003 - delivered },
        ];
        return isDeepStrictEqual(await statuses(), expected);
      });
    });
  },
);
