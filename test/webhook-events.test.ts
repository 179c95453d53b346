import { type Json, startService, type TestService } from './support/app.ts';
import { dbQuery } from './support/database.ts';
import { t } from './support/tap.ts';
import { bodiesFor, deliveriesOf, makeWebhook } from './support/webhooks.ts';

const url = 'http://127.0.0.1:9/hook';

async function partnerOf({ admin }: TestService): Promise<Json> {
  const email = `${Math.random()}@p.example`;
  return (await admin.post('/v1/partners', { email, permissions: ['read', 'write'] })).body;
}

/** The actions that an endpoint received, oldest first. */
async function receivedBy(service: TestService, webhook: Json): Promise<string[]> {
  return (await deliveriesOf(service, webhook)).toReversed().map(({ event }) => event);
}

t.test(
  "an endpoint receives the events that it subscribed to; a partner's endpoint only those of the partner and its keys",
  async (t) => {
    const service = await startService(t);
    const { admin } = service;
    const partner = await partnerOf(service);
    const all = await makeWebhook(service, { url });
    const some = await makeWebhook(service, { url, events: ['key.deleted', 'rate_limit.updated'] });
    const partners = await makeWebhook(service, { url, partnerId: partner.id });
    const disabled = await makeWebhook(service, { url });
    await admin.post(`/v1/webhooks/${disabled.id}/disable`);
    const other = await partnerOf(service);
    const [key] = partner.keys;
    await admin.post(`/v1/keys/${key.id}/reveal`, { reason: 'To see' });
    await admin.patch(`/v1/keys/${key.id}`, { name: 'Mine', metadata: { team: 'ours' } });
    await admin.put('/v1/rate-limit', { requests: 5, windowSeconds: 1 });
    await admin.delete(`/v1/keys/${other.keys[0].id}`);
    await admin.delete(`/v1/keys/${key.id}`);
    const request = await admin.post('/v1/recovery-requests', { partnerId: partner.id, details: 'x' });
    t.equal(request.body.code, 'conflict', 'the partner is not deleted');
    await admin.delete(`/v1/partners/${partner.id}`);
    await admin.post('/v1/recovery-requests', { partnerId: partner.id, details: 'By mistake' });

    t.same((await receivedBy(service, all)).slice(3), [
      'webhook.created',
      'webhook.disabled',
      'partner.created',
      'key.created',
      'key.created',
      'key.revealed',
      'key.updated',
      'rate_limit.updated',
      'key.deleted',
      'key.deleted',
      'partner.deleted',
      'key.deleted',
      'recovery.requested',
    ]);
    t.same(await receivedBy(service, some), ['rate_limit.updated', 'key.deleted', 'key.deleted', 'key.deleted']);
    t.same(await receivedBy(service, partners), ['key.updated', 'key.deleted', 'partner.deleted', 'key.deleted']);
    t.same((await receivedBy(service, disabled)).slice(1), [], 'after its own creation it received nothing');

    await t.test("a deleted partner's endpoint receives nothing until the partner is restored", async (t) => {
      const before = await receivedBy(service, partners);
      const { length } = await receivedBy(service, all);
      const used = { key: partner.keys[1].key, permission: 'write' };
      t.match((await service.verifier.post('/v1/verify', used)).body, { code: 'deleted' });
      await service.verification.usage.flush();
      t.same((await receivedBy(service, all)).slice(length), ['key.used_after_deletion']);
      t.same(await receivedBy(service, partners), before);
      t.equal((await admin.post(`/v1/webhooks/${partners.id}/test`)).status, 200);
      t.same((await receivedBy(service, partners)).slice(before.length), ['webhook.tested'], 'except test events');
      t.equal((await admin.post(`/v1/partners/${partner.id}/restore`)).status, 200);
      const received = (await receivedBy(service, partners)).slice(before.length + 1);
      t.same(received.toSorted(), ['key.restored', 'partner.restored']);
      await admin.delete(`/v1/partners/${partner.id}`);
    });
    t.same(
      (await admin.get(`/v1/webhooks?partnerId=${partner.id}`)).body.data.map(({ id }: Json) => id),
      [partners.id],
    );
    const { body: own } = await admin.get(`/v1/partners/${partner.id}/history`);
    t.ok(
      own.data.some(({ action }: Json) => action === 'webhook.created'),
      'the event is also in the history of the partner',
    );
    t.equal(
      (await admin.post('/v1/webhooks', { url, events: ['*'], partnerId: partner.id })).body.code,
      'already_deleted',
    );
  },
);

t.test("a body has ids and facts, and a partner's endpoint gets no internal metadata", async (t) => {
  const service = await startService(t);
  const { admin, organizationId } = service;
  const partner = await partnerOf(service);
  const all = await makeWebhook(service, { url, events: ['key.updated', 'key.created'] });
  const partners = await makeWebhook(service, {
    url,
    events: ['key.created', 'key.updated'],
    partnerId: partner.id,
  });
  await admin.patch(`/v1/keys/${partner.keys[0].id}`, { name: 'Mine', metadata: { team: 'ours' } });
  const payloads = async (webhook: Json, action: string): Promise<Json[]> =>
    (await bodiesFor(service, webhook, action)).map((body) => JSON.parse(body));
  const [event] = (await admin.get('/v1/history?action=key.updated')).body.data;
  const common = {
    eventId: event.id,
    sequence: event.sequence,
    organizationId,
    keyId: partner.keys[0].id,
    partnerId: partner.id,
    actor: { type: 'admin', id: event.actor.id },
    detailsOmitted: false,
  };
  const name = { from: null, to: 'Mine' };
  const metadata = { from: {}, to: { team: 'ours' } };
  t.same(await payloads(all, 'key.updated'), [
    { type: 'key.updated', timestamp: event.at, data: { ...common, details: { changes: { name, metadata } } } },
  ]);
  t.same(await payloads(partners, 'key.updated'), [
    { type: 'key.updated', timestamp: event.at, data: { ...common, details: { changes: { name } } } },
  ]);

  await t.test('the body of a new key has no internal metadata either', async (t) => {
    await admin.delete(`/v1/keys/${partner.keys[0].id}`);
    const input = { partnerId: partner.id, permission: 'read', metadata: { team: 'ours' }, name: 'New' };
    await admin.post('/v1/keys', input);
    const [ownBody] = (await payloads(all, 'key.created')).slice(-1);
    const [partnerBody] = await payloads(partners, 'key.created');
    t.match(ownBody?.data.details, { name: 'New', metadata: { team: 'ours' } });
    t.match(partnerBody?.data.details, { name: 'New' });
    t.equal(partnerBody?.data.details.metadata, undefined);
  });

  await t.test('bodies stay under 20 kB: longer details are omitted, and the body says so', async (t) => {
    const { body: key } = await admin.post('/v1/keys', { metadata: { long: 'ü'.repeat(8_100) } });
    await admin.patch(`/v1/keys/${key.id}`, { metadata: { long: 'é'.repeat(8_100) } });
    const [, created] = await payloads(all, 'key.created');
    t.equal(created.data.details.metadata.long.length, 8_100);
    const [, updated] = await payloads(all, 'key.updated');
    t.match(updated.data, { keyId: key.id, details: null, detailsOmitted: true });
    const bodies = [
      ...(await bodiesFor(service, all, 'key.created')),
      ...(await bodiesFor(service, all, 'key.updated')),
    ];
    t.ok(bodies.every((body) => Buffer.byteLength(body) < 20_000));
  });
});

t.test('after its deletion an endpoint has no deliveries, not even for its own deletion', async (t) => {
  const service = await startService(t);
  const { admin, urls } = service;
  const webhook = await makeWebhook(service, { url });
  await admin.delete(`/v1/webhooks/${webhook.id}`);
  await admin.post('/v1/keys', {});
  t.same(await dbQuery(urls.app, 'select action from webhook_deliveries'), [{ action: 'webhook.created' }]);
  t.equal((await admin.get('/v1/history')).body.data[0].action, 'key.created');
});

t.test('changes by Latchkey itself are also sent', async (t) => {
  const service = await startService(t);
  const { admin, verifier } = service;
  const partner = await partnerOf(service);
  const webhook = await makeWebhook(service, { url, partnerId: partner.id, events: ['key.used_after_deletion'] });
  await admin.delete(`/v1/keys/${partner.keys[0].id}`);
  await verifier.post('/v1/verify', { key: partner.keys[0].key, permission: 'read' });
  await service.verification.usage.flush();
  t.same(await receivedBy(service, webhook), ['key.used_after_deletion']);
});

t.test(
  'a change that is rolled back sends nothing, and a change whose delivery cannot be stored is rolled back',
  async (t) => {
    const service = await startService(t);
    const { admin, urls } = service;
    const webhook = await makeWebhook(service, { url });
    const before = await receivedBy(service, webhook);
    const app = new URL(urls.app).username;
    await dbQuery(urls.owner, `revoke execute on function history_append(text, text) from ${app}`);
    t.equal((await admin.post('/v1/keys', {})).status, 503);
    await dbQuery(urls.owner, `grant execute on function history_append(text, text) to ${app}`);
    t.same(await receivedBy(service, webhook), before);
    await dbQuery(urls.owner, `revoke insert on webhook_deliveries from ${app}`);
    t.equal((await admin.post('/v1/keys', {})).status, 503);
    await dbQuery(urls.owner, `grant insert on webhook_deliveries to ${app}`);
    t.same((await admin.get('/v1/keys')).body.data, []);
    t.match((await admin.get('/v1/history/verify')).body, { valid: true });
  },
);
