import { setTimeout as delay } from 'node:timers/promises';
import type { Test } from 'tap';
import { type Json, startService, type TestService } from './support/app.ts';
import { dbQuery } from './support/database.ts';
import { keyringOf } from './support/keyrings.ts';
import { eventually, runCompiled } from './support/process.ts';
import { proxyTo } from './support/proxy.ts';
import { t } from './support/tap.ts';
import { deliveriesOf, idOf, makeWebhook, startReceiver, startSending } from './support/webhooks.ts';

const entry = 'k1';

async function startSender(t: Test, { urls }: TestService) {
  const sender = runCompiled(t, 'test/support/webhook-sender.ts', [urls.app, entry]);
  await sender.until(/it sends/);
  return sender;
}

async function partnerOf({ admin }: TestService): Promise<Json> {
  const { body } = await admin.post('/v1/partners', { email: `${Math.random()}@p.example`, permissions: ['read'] });
  return body;
}

t.test(
  'when the sender is killed three times, each of 200 events arrives, and repeats have the same webhook-id',
  async (t) => {
    const service = await startService(t, { keyring: keyringOf(entry) });
    const { admin, urls } = service;
    const receiver = await startReceiver(t);
    // Long enough for a kill between the call and the stored result.
    receiver.reply = async (_, response) => {
      await delay(5 + Math.random() * 40);
      response.writeHead(204).end();
    };
    const keys: string[] = [];
    for (let count = 0; count < 20; count++) {
      const partner = await partnerOf(service);
      await makeWebhook(service, { url: receiver.url, partnerId: partner.id, events: ['key.updated'] });
      keys.push(partner.keys[0].id);
    }
    const changing = (async () => {
      for (let round = 1; round <= 10; round++) {
        for (const key of keys) {
          await admin.patch(`/v1/keys/${key}`, { name: `Round ${round}` });
          // Events continue while senders are replaced, so that no killed sender has all of the work.
          await delay(40);
        }
      }
    })();
    for (let kills = 0; kills < 3; kills++) {
      const sender = await startSender(t, service);
      const before = receiver.received.length;
      await eventually(async () => receiver.received.length >= before + 5, 60_000);
      await delay(Math.random() * 300);
      sender.child.kill('SIGKILL');
      await sender.exited;
    }
    await changing;
    await startSender(t, service);
    await eventually(async () => {
      const unsent = await dbQuery(urls.app, "select 1 from webhook_deliveries where status <> 'delivered'");
      return unsent.length === 0;
    }, 120_000);

    const { body } = await admin.get('/v1/history?action=key.updated&limit=200');
    const idsOf = new Map<number, Set<string>>();
    for (const call of receiver.received) {
      const ids = idsOf.get(call.json.data.sequence) ?? new Set();
      idsOf.set(call.json.data.sequence, ids.add(idOf(call)));
    }
    t.equal(body.data.length, 200);
    t.same(new Set(idsOf.keys()), new Set(body.data.map(({ sequence }: Json) => sequence)), 'every event arrived');
    t.ok(
      [...idsOf.values()].every((ids) => ids.size === 1),
      'each event has one id',
    );
    t.equal(new Set(receiver.received.map(idOf)).size, 200, 'each id belongs to one event');
    const bodies = new Map<string, string>();
    for (const call of receiver.received) {
      t.equal(bodies.get(idOf(call)) ?? call.body.toString(), call.body.toString());
      bodies.set(idOf(call), call.body.toString());
    }
    t.comment(`200 events, ${receiver.received.length - 200} arrived twice`);
  },
);

t.test('a change whose commit fails sends nothing', async (t) => {
  const service = await startService(t);
  const { admin, urls } = service;
  const receiver = await startReceiver(t);
  startSending(t, service);
  const webhook = await makeWebhook(service, { url: receiver.url, events: ['partner.created', 'partner.suspended'] });
  const { id } = await partnerOf(service);
  await eventually(async () => receiver.received.length === 1);
  // The commit itself fails, after everything was written.
  await dbQuery(
    urls.superuser,
    `create function refuse() returns trigger language plpgsql as $$ begin raise exception 'refused at the commit'; end $$;
     create constraint trigger refuse after insert on webhook_deliveries deferrable initially deferred
       for each row execute function refuse();`,
  );
  t.equal((await admin.post(`/v1/partners/${id}/suspend`)).status, 500);
  await dbQuery(urls.superuser, 'drop trigger refuse on webhook_deliveries');
  t.equal((await admin.get(`/v1/partners/${id}`)).body.suspendedAt, null);
  await partnerOf(service);
  await eventually(async () => receiver.received.length === 2);
  t.same(
    receiver.received.map(({ json }) => json.type),
    ['partner.created', 'partner.created'],
  );
  t.equal((await deliveriesOf(service, webhook)).length, 2);
});

t.test('if the database disappears during a call, the delivery is sent again under the same id', async (t) => {
  const service = await startService(t);
  const receiver = await startReceiver(t);
  const proxy = await proxyTo(t, service.urls.app);
  let answer: () => void = () => undefined;
  receiver.reply = (_, response) => {
    answer = () => void response.writeHead(204).end();
  };
  const sending = startSending(t, { ...service, urls: { ...service.urls, app: proxy.url } });
  const webhook = await makeWebhook(service, { url: receiver.url, events: ['partner.created'] });
  await partnerOf(service);
  await eventually(async () => receiver.received.length === 1);
  proxy.refuse(true);
  proxy.end();
  answer();
  receiver.reply = (_, response) => void response.writeHead(204).end();
  await eventually(async () => /outcome of a webhook delivery could not be stored/.test(sending.logLines.join('')));
  proxy.refuse(false);
  service.later(30_000);
  const delivery = await eventually(async () => {
    const [found] = await deliveriesOf(service, webhook);
    return found.status === 'delivered' && found;
  }, 60_000);
  t.same(new Set(receiver.received.map(idOf)), new Set([delivery.id]));
});

t.test('a service that stops releases unfinished deliveries, and another service continues at once', async (t) => {
  const service = await startService(t);
  const receiver = await startReceiver(t);
  receiver.reply = () => undefined;
  const first = startSending(t, service);
  const webhook = await makeWebhook(service, { url: receiver.url, events: ['partner.created'] });
  await partnerOf(service);
  await eventually(async () => receiver.received.length === 1);
  const startedAt = performance.now();
  await first.close();
  t.ok(performance.now() - startedAt < 7_000, 'within seconds');
  const [released] = await deliveriesOf(service, webhook);
  t.match(released, { status: 'pending', attempts: [] });
  t.ok(released.nextAttemptAt, 'its lease is released');
  receiver.reply = (_, response) => void response.writeHead(204).end();
  startSending(t, service);
  await eventually(async () => receiver.received.length === 2);
  t.equal(new Set(receiver.received.map(idOf)).size, 1);
});

t.test(
  'after the lease has ended, a success still counts; a failure is left to the current holder of the lease',
  async (t) => {
    const service = await startService(t);
    const receiver = await startReceiver(t);
    const answers: Array<(status: number) => void> = [];
    receiver.reply = (_, response) => void answers.push((status) => response.writeHead(status).end());
    for (let count = 0; count < 2; count++) startSending(t, service);
    const webhook = await makeWebhook(service, { url: receiver.url, events: ['partner.created'] });
    const afterAttempts = (count: number) =>
      eventually(async () => {
        const [delivery] = await deliveriesOf(service, webhook);
        return delivery.attempts.length === count && delivery;
      });
    const callTwice = async (before: number) => {
      await eventually(async () => answers.length === before + 1);
      service.later(30_000);
      await eventually(async () => answers.length === before + 2);
    };
    await partnerOf(service);
    await callTwice(0);
    answers[0]?.(500);
    t.match(await afterAttempts(1), { status: 'pending', nextAttemptAt: null }, 'the second call is in progress');
    answers[1]?.(500);
    const failed = await afterAttempts(2);
    t.equal(failed.status, 'pending');
    const waitMs = Date.parse(failed.nextAttemptAt) - Date.parse(failed.attempts[1].at);
    t.ok(waitMs < 60_000, `${waitMs} ms, as after one failure`);
    service.later(waitMs);
    await callTwice(2);
    answers[2]?.(204);
    t.match(await afterAttempts(3), { status: 'delivered', nextAttemptAt: null });
    answers[3]?.(500);
    t.match(await afterAttempts(4), { status: 'delivered', attempts: [{}, {}, { status: 204 }, { status: 500 }] });
    t.equal(new Set(receiver.received.map(idOf)).size, 1);
  },
);

t.test('a delivery that is redelivered while in progress is not called twice at once', async (t) => {
  const service = await startService(t);
  const { admin } = service;
  const receiver = await startReceiver(t);
  let answer: () => void = () => undefined;
  receiver.reply = (_, response) => {
    if (receiver.received.length > 1) response.writeHead(204).end();
    else answer = () => void response.writeHead(204).end();
  };
  startSending(t, service);
  const webhook = await makeWebhook(service, { url: receiver.url, events: ['partner.created'] });
  await partnerOf(service);
  await eventually(async () => receiver.received.length === 1);
  const [{ id }] = await deliveriesOf(service, webhook);
  const again = await admin.post(`/v1/webhooks/${webhook.id}/deliveries/${id}/redeliver`);
  t.match(again, { status: 200, body: { status: 'pending', nextAttemptAt: null } });
  await partnerOf(service);
  const [second] = await eventually(async () => {
    const found = await deliveriesOf(service, webhook);
    return found[0].status === 'delivered' && found;
  });
  t.same(receiver.received.map(idOf), [id, second.id]);
  answer();
  await eventually(async () => (await deliveriesOf(service, webhook))[1].status === 'delivered');
  t.equal(receiver.received.length, 2);
});
