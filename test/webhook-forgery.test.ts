import { Webhook as StandardWebhook } from 'standardwebhooks';
import type { Test } from 'tap';
import { parseKeyring } from '../src/crypto/keyring.ts';
import { canonicalJson } from '../src/domain/canonical-json.ts';
import { newId } from '../src/domain/ids.ts';
import { type Json, startService, type TestService } from './support/app.ts';
import { dbQuery } from './support/database.ts';
import { dbTamper } from './support/histories.ts';
import { keyringOf, keyringText } from './support/keyrings.ts';
import { eventually } from './support/process.ts';
import { t } from './support/tap.ts';
import {
  deliveriesOf,
  makeWebhook,
  type Received,
  type Receiver,
  startReceiver,
  startSending,
} from './support/webhooks.ts';

// The service signs and sends nothing that the database role wrote by itself.

interface PendingDelivery {
  service: TestService;
  receiver: Receiver;
  webhook: Json;
  /** The pending delivery of a real event. */
  genuine: Json;
}

/** An endpoint with one pending delivery. No sender runs yet. */
async function startPending(t: Test): Promise<PendingDelivery> {
  const service = await startService(t, { keyring: keyringOf('old') });
  const receiver = await startReceiver(t);
  const webhook = await makeWebhook(service, { url: receiver.url, events: ['key.created'] });
  await service.admin.post('/v1/keys', { name: 'Genuine' });
  const [genuine] = await deliveriesOf(service, webhook);
  return { service, receiver, webhook, genuine: genuine as Json };
}

const untilFinished = (service: TestService, webhook: Json) =>
  eventually(async () => {
    const deliveries = await deliveriesOf(service, webhook);
    return deliveries.every(({ finishedAt, attempts }) => finishedAt !== null && attempts.length > 0) && deliveries;
  });

/** Inserts as the service's role, with a MAC that it can find in the database. */
const insert = (
  { service, genuine }: PendingDelivery,
  id: string,
  change: { endpointId: string; sequence: number; action: string },
) =>
  dbQuery(
    service.urls.app,
    `insert into webhook_deliveries (id, endpoint_id, sequence, action, mac, mac_keyring_id, status, due_at, created_at)
     select $1, $2, $3, $4, mac, mac_keyring_id, 'pending', now(), now() from webhook_deliveries where id = $5`,
    [id, change.endpointId, change.sequence, change.action, genuine.id],
  );

t.test('a delivery that the database role inserts fails with a reason, and is never signed', async (t) => {
  const pending = await startPending(t);
  const { service, receiver, webhook, genuine } = pending;
  const { urls, organizationId, admin } = service;
  const action = 'key.created';
  const forgeries = {
    'another delivery of the same event': { endpointId: webhook.id, sequence: genuine.sequence, action },
    'an event that the endpoint did not subscribe to': { endpointId: webhook.id, sequence: 1, action },
    'an event that does not exist': { endpointId: webhook.id, sequence: 999, action },
  };
  const ids = Object.fromEntries(Object.keys(forgeries).map((what) => [what, newId('delivery')]));
  for (const [what, change] of Object.entries(forgeries)) await insert(pending, String(ids[what]), change);

  await t.test('a delivery of an event that the role appended is not signed either', async () => {
    const [head] = await dbQuery(urls.app, 'select * from history_begin($1)', [organizationId]);
    const [last] = await dbQuery(urls.app, 'select canonical from history order by at desc limit 1');
    const event = JSON.parse(String(last?.['canonical']));
    const at = new Date(Number(head?.['at_ms'])).toISOString();
    const forged = canonicalJson({ ...event, at, sequence: Number(head?.['next_sequence']), id: newId('event') });
    await dbQuery(urls.app, 'select history_append($1, $2)', [organizationId, forged]);
    const sequence = Number(head?.['next_sequence']);
    ids['forged event'] = newId('delivery');
    await insert(pending, ids['forged event'], { endpointId: webhook.id, sequence, action });
  });

  const sending = startSending(t, service);
  const deliveries = await untilFinished(service, webhook);
  const byId = new Map(deliveries.map((delivery) => [delivery.id, delivery]));
  t.match(byId.get(genuine.id), { status: 'delivered' });
  t.equal(deliveries.length, 5);
  for (const [what, id] of Object.entries(ids)) {
    const reason = what === 'an event that does not exist' ? 'event_missing' : 'not_authentic';
    t.match(byId.get(id), { status: 'failed', attempts: [{ status: null, reason }] }, what);
    t.match(
      sending.logLines.join(''),
      new RegExp(`"level":50[^\\n]*${id}[^\\n]*"reason":"${reason}"`),
      `${what}, logged`,
    );
  }
  t.equal(receiver.received.length, 1);
  t.equal(receiver.received[0]?.json.data.details.name, 'Genuine');
  t.equal(
    (await admin.get(`/v1/webhooks/${webhook.id}`)).body.failingSince,
    null,
    'this does not count as a failure of the endpoint',
  );

  await t.test('redelivering a forged delivery has no effect; a genuine one is sent again', async (t) => {
    const redeliveries = `/v1/webhooks/${webhook.id}/deliveries`;
    await admin.post(`${redeliveries}/${ids['an event that the endpoint did not subscribe to']}/redeliver`);
    await admin.post(`${redeliveries}/${genuine.id}/redeliver`);
    const redelivered = await untilFinished(service, webhook);
    t.equal(redelivered.filter(({ status }) => status === 'failed').length, 4);
    await eventually(async () => receiver.received.length === 2);
  });
});

t.test('a pending delivery that was changed is not sent', async (t) => {
  const changes: Record<string, string> = {
    'another event': 'sequence = 1',
    'another action': "action = 'key.deleted'",
    'another id': `id = '${newId('delivery')}'`,
    'a zero MAC': "mac = decode(repeat('00', 32), 'hex')",
    'an entry that the keyring lacks': "mac_keyring_id = 'gone'",
  };
  for (const [what, change] of Object.entries(changes)) {
    const { service, receiver, webhook } = await startPending(t);
    await dbQuery(service.urls.app, `update webhook_deliveries set ${change}`);
    startSending(t, service);
    t.match(
      await untilFinished(service, webhook),
      [{ status: 'failed', attempts: [{ reason: 'not_authentic' }] }],
      what,
    );
    t.equal(receiver.received.length, 0);
  }
  await t.test('a delivery that was moved to another endpoint is not sent', async (t) => {
    const { service, receiver, webhook } = await startPending(t);
    const other = await makeWebhook(service, { url: receiver.url, events: ['key.deleted'] });
    await dbQuery(service.urls.app, 'update webhook_deliveries set endpoint_id = $2 where endpoint_id = $1', [
      webhook.id,
      other.id,
    ]);
    startSending(t, service);
    t.match(await untilFinished(service, other), [{ status: 'failed', attempts: [{ reason: 'not_authentic' }] }]);
    t.equal(receiver.received.length, 0);
  });
});

t.test('an event that was changed after its commit is not sent', async (t) => {
  const { service, receiver, webhook, genuine } = await startPending(t);
  await dbTamper(
    service.urls.superuser,
    `update history set canonical = replace(canonical, 'Genuine', 'Forged') where sequence = ${genuine.sequence}`,
  );
  startSending(t, service);
  t.match(await untilFinished(service, webhook), [{ status: 'failed', attempts: [{ reason: 'not_authentic' }] }]);
  t.equal(receiver.received.length, 0);
});

t.test('a delivery under a removed keyring entry fails, and later events are sent', async (t) => {
  const { service, receiver, webhook, genuine } = await startPending(t);
  const keyring = parseKeyring(keyringText('new'), ['old']);
  const later = await startService(t, { urls: service.urls, keyring });
  startSending(t, later);
  await eventually(async () => (await deliveriesOf(service, webhook))[0]?.status === 'failed');
  t.match(await deliveriesOf(service, webhook), [
    { id: genuine.id, status: 'failed', attempts: [{ reason: 'not_authentic' }] },
  ]);
  const admin = later.as(service.admin.token);
  const { body: rotated } = await admin.post(`/v1/webhooks/${webhook.id}/rotate-secret`);
  t.equal(receiver.received.length, 0);
  await admin.post('/v1/keys', { name: 'Later' });
  await eventually(async () => receiver.received.length === 1);
  const { headers, body } = receiver.received[0] as Received;
  t.match(headers['webhook-signature'], /^v1,[^ ]+$/, 'one signature: the previous secret cannot be unsealed');
  t.doesNotThrow(() => new StandardWebhook(rotated.secret).verify(body.toString(), headers as Record<string, string>));
});

t.test('an endpoint whose URL or partner was edited by SQL gets nothing', async (t) => {
  const other = await startReceiver(t);
  const edits: Record<string, (pending: PendingDelivery) => Promise<string>> = {
    'another URL': async () => `url = '${other.url}'`,
    'another partner': async ({ service }) => {
      const { body } = await service.admin.post('/v1/partners', { email: 'p@p.example', permissions: ['read'] });
      return `partner_id = '${body.id}'`;
    },
  };
  for (const [what, edit] of Object.entries(edits)) {
    const pending = await startPending(t);
    const { service, receiver, webhook, genuine } = pending;
    await dbQuery(service.urls.app, `update webhook_endpoints set ${await edit(pending)}`);
    startSending(t, service);
    await eventually(async () => {
      const deliveries = await deliveriesOf(service, webhook);
      return deliveries.find(({ id }) => id === genuine.id)?.attempts[0]?.reason === 'secret_unreadable';
    });
    t.equal(receiver.received.length + other.received.length, 0, what);
  }
  await t.test('a URL changed by the API is called, with the same secret', async (t) => {
    const { service, receiver, webhook } = await startPending(t);
    await service.admin.patch(`/v1/webhooks/${webhook.id}`, { url: other.url });
    startSending(t, service);
    t.match(await untilFinished(service, webhook), [{ status: 'delivered' }]);
    t.same([receiver.received.length, other.received.length], [0, 1]);
  });
});
