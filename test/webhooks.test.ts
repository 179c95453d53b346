import { historyActions } from '../src/domain/events.ts';
import { type Json, startService, type TestService } from './support/app.ts';
import { dbQuery } from './support/database.ts';
import { t } from './support/tap.ts';
import { deliveriesOf, makeWebhook } from './support/webhooks.ts';

// The endpoints themselves. Other files test what is sent.

const url = 'http://127.0.0.1:9/hook';

async function historyOf({ admin }: TestService, webhookId: string): Promise<Json[]> {
  const { body } = await admin.get('/v1/history?limit=200');
  return body.data.filter((event: Json) => event.details.webhookId === webhookId).toReversed();
}

async function partnerOf({ admin }: TestService): Promise<Json> {
  const email = `${Math.random()}@p.example`;
  return (await admin.post('/v1/partners', { email, permissions: ['read', 'write'] })).body;
}

t.test('an endpoint can be created, changed, disabled, tested and deleted, each with its event', async (t) => {
  const service = await startService(t);
  const { admin, organizationId } = service;
  const input = { url: `${url}?token=theirs`, events: ['key.deleted', 'key.created'], description: 'Billing' };
  const { status, headers, body } = await admin.post('/v1/webhooks', input);
  t.equal(status, 201);
  t.equal(headers.location, `/v1/webhooks/${body.id}`);
  t.match(body, { secret: /^whsec_[A-Za-z0-9+/]{43}=$/ });
  const { secret, ...created } = body;
  t.match(created, {
    id: /^webhook_/,
    organizationId,
    partnerId: null,
    url: input.url,
    events: ['key.created', 'key.deleted'],
    description: 'Billing',
    status: 'enabled',
    disabledAt: null,
    disabledReason: null,
    failingSince: null,
    previousSecretUntil: null,
    createdBy: { type: 'admin', email: 'ada@example.com' },
    deletedAt: null,
  });
  const path = `/v1/webhooks/${created.id}`;
  t.same((await admin.get(path)).body, created, 'the secret is shown once');
  t.same((await admin.get('/v1/webhooks')).body, { data: [created], nextCursor: null });

  const patched = await admin.patch(path, { url, events: ['*'], description: null });
  t.same(patched.body, { ...created, url, events: ['*'], description: null });
  t.same((await admin.patch(path, { url, events: ['*'] })).body, patched.body, 'a change without an effect');
  const disabled = await admin.post(`${path}/disable`);
  t.match(disabled.body, { status: 'disabled', disabledReason: 'requested', disabledAt: /^2/ });
  t.same((await admin.post(`${path}/disable`)).body, disabled.body);
  t.match((await admin.post(`${path}/test`)).body, { code: 'conflict' }, 'a disabled endpoint gets no test event');
  t.same((await admin.post(`${path}/enable`)).body, patched.body);
  t.same((await admin.post(`${path}/enable`)).body, patched.body);
  t.same((await admin.post(`${path}/test`)).body, patched.body);
  const rotated = await admin.post(`${path}/rotate-secret`);
  t.not(rotated.body.secret, secret);
  const inADay = Date.parse(rotated.body.previousSecretUntil) - Date.now();
  t.ok(Math.abs(inADay - 86_400_000) < 60_000);
  const deleted = await admin.delete(path);
  t.match(deleted, { status: 200, body: { deletedAt: /^2/, previousSecretUntil: null } });
  for (const reply of [await admin.get(path), await admin.delete(path), await admin.post(`${path}/rotate-secret`)]) {
    t.match(reply, { status: 404, body: { code: 'not_found' } });
  }
  t.same((await admin.get('/v1/webhooks')).body.data, []);

  const events = await historyOf(service, created.id);
  t.same(
    events.map(({ action, details }) => [action, { ...details, webhookId: undefined }]),
    [
      [
        'webhook.created',
        {
          webhookId: undefined,
          url: `${url}?…`,
          events: ['key.created', 'key.deleted'],
          description: 'Billing',
        },
      ],
      [
        'webhook.updated',
        {
          webhookId: undefined,
          changes: {
            url: { from: `${url}?…`, to: url },
            events: { from: ['key.created', 'key.deleted'], to: ['*'] },
            description: { from: 'Billing', to: null },
          },
        },
      ],
      ['webhook.disabled', { webhookId: undefined, reason: 'requested', failingSince: null }],
      ['webhook.enabled', { webhookId: undefined, disabledAt: disabled.body.disabledAt, reason: 'requested' }],
      ['webhook.tested', { webhookId: undefined }],
      ['webhook.secret_rotated', { webhookId: undefined, previousUntil: rotated.body.previousSecretUntil }],
      ['webhook.deleted', { webhookId: undefined, url }],
    ],
  );
  t.match((await admin.get('/v1/history/verify')).body, { valid: true });
});

t.test('secrets are stored sealed, and deleted with the endpoint', async (t) => {
  const service = await startService(t);
  const { admin, urls } = service;
  const webhook = await makeWebhook(service, { url });
  await admin.post(`/v1/webhooks/${webhook.id}/rotate-secret`);
  const columns = 'sealed, previous_sealed, sealed_keyring_id, previous_sealed_keyring_id, previous_until';
  const row = async () => (await dbQuery(urls.superuser, `select ${columns} from webhook_endpoints`))[0] ?? {};
  const sealed = await row();
  t.ok(Buffer.isBuffer(sealed['sealed']) && Buffer.isBuffer(sealed['previous_sealed']));
  const raw = Buffer.from(webhook.secret.slice('whsec_'.length), 'base64');
  for (const value of Object.values(sealed)) {
    if (!Buffer.isBuffer(value)) continue;
    t.notOk(value.includes(raw) || value.includes(webhook.secret), 'neither as text nor as bytes');
  }
  await admin.delete(`/v1/webhooks/${webhook.id}`);
  t.ok(Object.values(await row()).every((value) => value === null));
});

t.test('a reply with a secret is replayed for 15 minutes', async (t) => {
  const { admin, later } = await startService(t);
  const key = { 'idempotency-key': 'k' };
  const input = { url, events: ['*'] };
  const { body: created } = await admin.post('/v1/webhooks', input, key);
  const { id } = created;
  t.match(created.secret, /^whsec_/);
  const replyGone = {
    status: 409,
    headers: { 'idempotent-replayed': 'true' },
    body: { code: 'reply_gone', created: [id] },
  };
  t.same((await admin.post('/v1/webhooks', input, key)).body, created);
  const path = `/v1/webhooks/${id}/rotate-secret`;
  const { body: rotated } = await admin.post(path, undefined, key);
  t.not(rotated.secret, created.secret);
  t.same((await admin.post(path, undefined, key)).body, rotated);
  later(15 * 60_000);
  t.match(await admin.post('/v1/webhooks', input, key), replyGone);
  t.match(await admin.post(path, undefined, key), replyGone);
  t.equal((await admin.get('/v1/webhooks')).body.data.length, 1);
});

t.test('invalid input is rejected with its path', async (t) => {
  const service = await startService(t);
  const { admin } = service;
  const { id: partnerId } = await partnerOf(service);
  const table: Array<[what: Json, path: string]> = [
    [{ events: ['*'] }, 'body.url'],
    [{ url: 'ftp://example.com', events: ['*'] }, 'body.url'],
    [{ url: 'nonsense', events: ['*'] }, 'body.url'],
    [{ url: 'http://10.0.0.1/', events: ['*'] }, 'body.url'],
    [{ url: 'http://user:pass@127.0.0.1/', events: ['*'] }, 'body.url'],
    [{ url: `http://127.0.0.1/${'x'.repeat(2_048)}`, events: ['*'] }, 'body.url'],
    [{ url }, 'body.events'],
    [{ url, events: [] }, 'body.events'],
    [{ url, events: ['key.eaten'] }, 'body.events.0'],
    [{ url, events: ['key.created', 'organization.created'] }, 'body.events.1'],
    [{ url, events: ['webhook.tested'] }, 'body.events.0'],
    [{ url, events: ['key.created', 'key.created'] }, 'body.events'],
    [{ url, events: ['*', 'key.created'] }, 'body.events'],
    [{ url, events: 'key.created' }, 'body.events'],
    [{ url, events: ['*'], description: '' }, 'body.description'],
    [{ url, events: ['*'], partnerId: 'partner_x' }, 'body.partnerId'],
    [{ url, events: ['partner.created', 'key.revealed'], partnerId }, 'body.events.1'],
    [{ url, events: ['rate_limit.updated'], partnerId }, 'body.events.0'],
  ];
  for (const [input, path] of table) {
    const { status, body } = await admin.post('/v1/webhooks', input);
    t.same([status, body.code, body.errors?.[0].path], [400, 'validation_failed', path], JSON.stringify(input));
  }
  const webhook = await makeWebhook(service, { url, partnerId });
  for (const [patch, path] of [
    [{ url: 'http://10.0.0.1/' }, 'body.url'],
    [{ events: ['key.revealed'] }, 'body.events.0'],
    [{ partnerId: null }, 'body.partnerId'],
  ] as const) {
    const { status, body } = await admin.patch(`/v1/webhooks/${webhook.id}`, patch);
    t.same([status, body.errors[0].path], [400, path], JSON.stringify(patch));
  }
  t.equal((await historyOf(service, webhook.id)).length, 1, 'nothing was changed');
});

t.test('an organization has at most 50 endpoints, even if many are created at once', async (t) => {
  const service = await startService(t);
  const { admin } = service;
  for (let count = 0; count < 47; count++) await makeWebhook(service, { url });
  const replies = await Promise.all(
    Array.from({ length: 8 }, () => admin.post('/v1/webhooks', { url, events: ['*'] })),
  );
  t.same(replies.map(({ status }) => status).sort(), [201, 201, 201, 409, 409, 409, 409, 409]);
  t.equal(replies.find(({ status }) => status === 409)?.body.code, 'conflict');
  const { body } = await admin.get('/v1/webhooks?limit=30');
  t.equal(body.data.length, 30);
  const { body: rest } = await admin.get(`/v1/webhooks?limit=30&cursor=${body.nextCursor}`);
  t.same([rest.data.length, rest.nextCursor], [20, null]);
  await admin.delete(`/v1/webhooks/${rest.data[0].id}`);
  t.equal((await admin.post('/v1/webhooks', { url, events: ['*'] })).status, 201);
});

t.test('another organization gets no events and finds no endpoint', async (t) => {
  const service = await startService(t);
  const { operator } = service;
  const { body: other } = await operator.post('/v1/organizations', { name: 'Other' });
  const inOther = { 'latchkey-organization': other.id };
  const token = { role: 'admin', scopes: ['read', 'write'], name: 'Eve', email: 'eve@example.com' };
  const otherAdmin = service.as((await operator.post('/v1/access-tokens', token, inOther)).body.token);
  const { body: otherWebhook } = await otherAdmin.post('/v1/webhooks', { url, events: ['*'] });
  const ownWebhook = await makeWebhook(service, { url });
  const partner = await partnerOf(service);
  t.equal((await otherAdmin.post('/v1/webhooks', { url, events: ['*'], partnerId: partner.id })).status, 404);
  t.same(
    (await otherAdmin.get(`/v1/webhooks/${otherWebhook.id}/deliveries`)).body.data.length,
    1,
    'only its own creation',
  );
  const [delivery] = await deliveriesOf(service, ownWebhook);
  const foreign = [
    `/v1/webhooks/${ownWebhook.id}/deliveries/${delivery.id}/redeliver`,
    `/v1/webhooks/${otherWebhook.id}/deliveries/${delivery.id}/redeliver`,
  ];
  for (const path of foreign) t.equal((await otherAdmin.post(path)).status, 404, path);
  t.same(
    (await otherAdmin.get('/v1/webhooks')).body.data.map(({ id }: Json) => id),
    [otherWebhook.id],
  );
  t.equal((await deliveriesOf(service, ownWebhook)).length, 4, 'its creation, the partner and two keys');
});

t.test('every action can be subscribed to, or has a reason why not', async (t) => {
  const { admin } = await startService(t);
  const refused: string[] = [];
  for (const action of historyActions) {
    const { status, body } = await admin.post('/v1/webhooks', { url, events: [action] });
    if (status === 201) await admin.delete(`/v1/webhooks/${body.id}`);
    else refused.push(action);
  }
  t.same(refused, [
    'organization.created',
    'webhook.tested',
    'keyring.rekey_started',
    'keyring.rekeyed',
    'history.archived',
  ]);
});
