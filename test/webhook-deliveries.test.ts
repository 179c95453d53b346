import type { ServerResponse } from 'node:http';
import { Webhook as StandardWebhook } from 'standardwebhooks';
import { Webhook as SvixWebhook } from 'svix';
import type { Test } from 'tap';
import { type Json, startService, type TestService } from './support/app.ts';
import { eventually } from './support/process.ts';
import { t } from './support/tap.ts';
import {
  deliveriesOf,
  idOf,
  makeWebhook,
  type Received,
  type Receiver,
  startReceiver,
  startSending,
} from './support/webhooks.ts';

const hourMs = 3_600_000;

async function startDelivering(t: Test, options: { timeoutMs?: number } = {}) {
  const service = await startService(t);
  const receiver = await startReceiver(t);
  const sending = startSending(t, service, options);
  return { service, receiver, sending, admin: service.admin };
}

/** Creates an endpoint with one delivery. */
async function startEndpoint(service: TestService, receiver: Receiver, options: Json = {}): Promise<Json> {
  const webhook = await makeWebhook(service, { url: receiver.url, events: ['key.created'], ...options });
  await causeEvent(service);
  return webhook;
}

async function causeEvent({ admin }: TestService): Promise<void> {
  const { status, body } = await admin.post('/v1/partners', {
    email: `${Math.random()}@p.example`,
    permissions: ['read'],
  });
  if (status !== 201) throw new Error(JSON.stringify(body));
}

const untilDelivery = (service: TestService, webhook: Json, isAwaited: (delivery: Json) => boolean) =>
  eventually(async () => (await deliveriesOf(service, webhook)).find(isAwaited));

const attempted = (count: number) => (delivery: Json) => delivery.attempts.length >= count;

/** Verifies like a receiver, from the raw bytes and headers. */
function verifies(secret: string, { body, headers }: Received): { standard: boolean; svix: boolean } {
  const accepts = (receiver: StandardWebhook | SvixWebhook) => {
    try {
      receiver.verify(body.toString('utf8'), headers as Record<string, string>);
      return true;
    } catch {
      return false;
    }
  };
  return { standard: accepts(new StandardWebhook(secret)), svix: accepts(new SvixWebhook(secret)) };
}

t.test("a delivery arrives quickly, and receivers' libraries verify its raw bytes", async (t) => {
  const { service, receiver } = await startDelivering(t);
  const webhook = await startEndpoint(service, receiver);
  const delivery = await untilDelivery(service, webhook, ({ status }) => status === 'delivered');
  t.match(delivery, {
    event: 'key.created',
    nextAttemptAt: null,
    attempts: [{ number: 1, status: 204, reason: null }],
  });
  const [call] = receiver.received as [Received];
  t.equal(receiver.received.length, 1);
  t.match(call.headers, { 'content-type': 'application/json', 'webhook-id': delivery.id });
  t.match(call.json, { type: 'key.created', data: { sequence: delivery.sequence, detailsOmitted: false } });
  t.same(verifies(webhook.secret, call), { standard: true, svix: true });
  const changed = { ...call, body: Buffer.from(call.body.toString('utf8').replace('key.created', 'key.deleted')) };
  t.same(verifies(webhook.secret, changed), { standard: false, svix: false });
  const renamed = { ...call, headers: { ...call.headers, 'webhook-id': 'delivery_x' } };
  t.same(verifies(webhook.secret, renamed), { standard: false, svix: false });
  t.same(
    verifies((await startEndpoint(service, receiver)).secret, call),
    { standard: false, svix: false },
    'the secret of another endpoint does not verify',
  );
});

t.test('during a rotation both secrets verify, and after 24 hours only the new one', async (t) => {
  const { service, receiver, admin } = await startDelivering(t);
  const webhook = await startEndpoint(service, receiver);
  const rotate = async () => (await admin.post(`/v1/webhooks/${webhook.id}/rotate-secret`)).body.secret;
  const second = await rotate();
  const nextCall = async () => {
    const before = receiver.received.length;
    await causeEvent(service);
    await eventually(async () => receiver.received.length > before);
    return receiver.received.at(-1) as Received;
  };
  await eventually(async () => receiver.received.length === 1);
  const during = await nextCall();
  for (const secret of [webhook.secret, second]) t.same(verifies(secret, during), { standard: true, svix: true });
  const third = await rotate();
  const afterAnother = await nextCall();
  t.same(
    [webhook.secret, second, third].map((secret) => verifies(secret, afterAnother).standard),
    [false, true, true],
    'only the last two secrets sign',
  );
  service.later(24 * hourMs);
  const dayLater = await nextCall();
  t.match(dayLater.headers['webhook-signature'], /^v1,[^ ]+$/, 'one signature is left');
  const signs = Number(dayLater.headers['webhook-timestamp']);
  t.ok(Math.abs(signs * 1_000 - Date.now() - 24 * hourMs) < 60_000, 'the signature has the current time');
  const expected = new StandardWebhook(third).sign(idOf(dayLater), new Date(signs * 1_000), dayLater.body.toString());
  t.equal(dayLater.headers['webhook-signature'], expected);
});

t.test('only a 2xx reply is a success, and the reason of each failure is recorded', async (t) => {
  const { service, receiver, admin } = await startDelivering(t, { timeoutMs: 1_500 });
  const target = await startReceiver(t);
  const table: Array<[path: string, after: (call: Received, response: ServerResponse) => void, expected: Json]> = [
    [
      '200',
      (_, response) => response.writeHead(200).end('thank you'),
      { status: 'delivered', attempts: [{ status: 200, reply: 'thank you' }] },
    ],
    ['299', (_, response) => response.writeHead(299).end(), { status: 'delivered', attempts: [{ status: 299 }] }],
    [
      '302',
      (_, response) => response.writeHead(302, { location: target.url }).end(),
      { status: 'pending', attempts: [{ status: 302 }] },
    ],
    [
      '308',
      (_, response) => response.writeHead(308, { location: target.url }).end(),
      { status: 'pending', attempts: [{ status: 308 }] },
    ],
    [
      '400',
      (_, response) => response.writeHead(400).end('\u0000 é'),
      { status: 'pending', attempts: [{ status: 400, reply: '� é' }] },
    ],
    [
      '500',
      (_, response) => response.writeHead(500).end('x'.repeat(5_000)),
      { status: 'pending', attempts: [{ status: 500, reply: 'x'.repeat(1_000) }] },
    ],
    [
      'reset',
      (_, response) => response.socket?.destroy(),
      { status: 'pending', attempts: [{ status: null, reason: 'reply_broken' }] },
    ],
    ['silence', () => undefined, { status: 'pending', attempts: [{ status: null, reason: 'timed_out' }] }],
  ];
  const replies = new Map(table.map(([path, reply]) => [`/${path}`, reply]));
  receiver.reply = (call, response) => void replies.get(call.path)?.(call, response);
  const webhooks = [];
  for (const [path] of table) {
    webhooks.push(await makeWebhook(service, { url: new URL(`/${path}`, receiver.url).href, events: ['key.created'] }));
  }
  const unreachable = await makeWebhook(service, { url: 'http://127.0.0.1:9/', events: ['key.created'] });
  await causeEvent(service);
  for (const [index, [path, , expected]] of table.entries()) {
    const delivery = await untilDelivery(service, webhooks[index], attempted(1));
    t.match(delivery, expected, path);
    t.equal(delivery.attempts.length, 1, path);
    const { body } = await admin.get(`/v1/webhooks/${webhooks[index].id}`);
    t.equal(body.failingSince !== null, delivery.status === 'pending', path);
  }
  const refused = await untilDelivery(service, unreachable, attempted(1));
  t.match(refused, { status: 'pending', attempts: [{ status: null, reason: 'connect_failed', reply: null }] });
  t.equal(target.received.length, 0, 'no redirect is followed');
});

t.test('Retry-After of 429 and 503 is followed, within bounds', async (t) => {
  const { service, receiver } = await startDelivering(t);
  const table: Array<[status: number, retryAfter: string | undefined, leastMs: number]> = [
    [429, '120', 120_000],
    [503, '3600', hourMs],
    [503, '1', 5_000],
    [503, '9999999', 24 * hourMs],
    [503, undefined, 5_000],
    [500, '120', 5_000],
  ];
  for (const [status, retryAfter, leastMs] of table) {
    receiver.reply = (_, response) =>
      void response.writeHead(status, retryAfter === undefined ? {} : { 'retry-after': retryAfter }).end();
    const webhook = await startEndpoint(service, receiver);
    const delivery = await untilDelivery(service, webhook, attempted(1));
    const waitMs = Date.parse(delivery.nextAttemptAt) - Date.parse(delivery.attempts[0].at);
    const what = `${status} with ${retryAfter}: ${waitMs} ms`;
    t.ok(waitMs >= leastMs && waitMs <= leastMs * 1.1 + 2_000, what);
    await service.admin.delete(`/v1/webhooks/${webhook.id}`);
  }
});

t.test('a failed delivery is retried on schedule with the same webhook-id, and finally fails', async (t) => {
  const { service, receiver } = await startDelivering(t);
  receiver.reply = (_, response) => void response.writeHead(500).end();
  const webhook = await startEndpoint(service, receiver);
  const minutes = [5 / 60, 5, 30, 120, 300, 600, 840, 1_200, 1_440];
  for (const [index, minute] of minutes.entries()) {
    const delivery = await untilDelivery(service, webhook, attempted(index + 1));
    t.equal(delivery.status, 'pending');
    const waitMs = Date.parse(delivery.nextAttemptAt) - Date.parse(delivery.attempts[index].at);
    const leastMs = minute * 60_000;
    t.ok(waitMs >= leastMs && waitMs <= leastMs * 1.1 + 2_000, `${waitMs} ms after attempt ${index + 1}`);
    service.later(waitMs + 1_000);
  }
  const last = await untilDelivery(service, webhook, ({ status }) => status === 'failed');
  t.match(last, { nextAttemptAt: null, finishedAt: /^2/ });
  t.same(
    last.attempts.map(({ number }: Json) => number),
    [1, 2, 3, 4, 5, 6, 7, 8, 9, 10],
  );
  t.equal(receiver.received.length, 10);
  t.same(new Set(receiver.received.map(idOf)), new Set([last.id]));
  const signatures = receiver.received.map(({ headers }) => headers['webhook-signature']);
  t.equal(new Set(signatures).size, 10, 'each attempt is signed with its own time');

  await t.test('failed deliveries can be sent again, from the start of the schedule', async (t) => {
    const since = new Date(0).toISOString();
    const all = await service.admin.post(`/v1/webhooks/${webhook.id}/deliveries/redeliver`, { since });
    t.same(all.body, { deliveries: 1, isCutShort: false });
    const { status, nextAttemptAt, attempts } = await untilDelivery(service, webhook, attempted(11));
    t.equal(status, 'pending');
    t.ok(Date.parse(nextAttemptAt) - Date.parse(attempts[10].at) < 8_000);
  });

  await t.test('a single delivery can be sent again', async (t) => {
    const again = await service.admin.post(`/v1/webhooks/${webhook.id}/deliveries/${last.id}/redeliver`);
    t.match(again, { status: 200, body: { id: last.id, status: 'pending', finishedAt: null } });
    const delivery = await untilDelivery(service, webhook, attempted(12));
    t.equal(delivery.status, 'pending');
    t.ok(Date.parse(delivery.nextAttemptAt) - Date.parse(delivery.attempts[11].at) < 8_000);
    receiver.reply = (_, response) => void response.writeHead(204).end();
    service.later(10_000);
    await untilDelivery(service, webhook, ({ status }) => status === 'delivered');
    t.equal((await service.admin.get(`/v1/webhooks/${webhook.id}`)).body.failingSince, null);
    t.same(new Set(receiver.received.map(idOf)), new Set([last.id]));
  });
});

t.test('an endpoint that replies 410 is disabled and gets nothing more', async (t) => {
  const { service, receiver, admin } = await startDelivering(t);
  receiver.reply = (_, response) => void response.writeHead(410).end();
  const webhook = await startEndpoint(service, receiver);
  const delivery = await untilDelivery(service, webhook, ({ status }) => status === 'failed');
  t.match(delivery.attempts, [{ number: 1, status: 410 }]);
  t.match((await admin.get(`/v1/webhooks/${webhook.id}`)).body, { status: 'disabled', disabledReason: 'gone' });
  await causeEvent(service);
  t.equal((await deliveriesOf(service, webhook)).length, 1, 'no delivery is stored for it');
  const { body: history } = await admin.get('/v1/history?action=webhook.disabled');
  t.match(history.data, [
    { actor: { type: 'system', id: 'webhooks' }, details: { webhookId: webhook.id, reason: 'gone' } },
  ]);
  t.equal(history.data.length, 1);
  t.equal((await admin.post(`/v1/webhooks/${webhook.id}/deliveries/${delivery.id}/redeliver`)).body.code, 'conflict');
});

t.test('a test event goes only to its endpoint, whatever the endpoint subscribed to', async (t) => {
  const { service, receiver, admin } = await startDelivering(t);
  const other = await startReceiver(t);
  const webhook = await makeWebhook(service, { url: receiver.url, events: ['partner.deleted'] });
  const all = await makeWebhook(service, { url: other.url });
  await eventually(async () => other.received.length === 1);
  t.equal((await admin.post(`/v1/webhooks/${webhook.id}/test`)).status, 200);
  await untilDelivery(service, webhook, ({ event, status }) => event === 'webhook.tested' && status === 'delivered');
  t.match(receiver.received[0]?.json, { type: 'webhook.tested', data: { details: { webhookId: webhook.id } } });
  t.same(verifies(webhook.secret, receiver.received[0] as Received), { standard: true, svix: true });
  t.same(
    (await deliveriesOf(service, all)).map(({ event }) => event),
    ['webhook.created'],
  );
});
