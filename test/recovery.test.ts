import { isUrgency } from '../src/recovery/store.ts';
import { type Client, type Json, startService, type TestService } from './support/app.ts';
import { t } from './support/tap.ts';

const day = 86_400_000;

const events = async (admin: Client, count = 200): Promise<Json[]> =>
  (await admin.get(`/v1/history?limit=${count}`)).body.data;

const verdictOf = async ({ verifier }: TestService, { key, permission }: Json): Promise<string> =>
  (await verifier.post('/v1/verify', { key, permission: permission === 'write' ? 'write' : 'read' })).body.code;

async function deletedKey(admin: Client, row: Record<string, unknown> = {}): Promise<Json> {
  const { body: key } = await admin.post('/v1/keys', row);
  await admin.delete(`/v1/keys/${key.id}`);
  return key;
}

t.test('an operator restores a key that an admin can no longer restore', async (t) => {
  const service = await startService(t);
  const { admin, operator } = service;
  const key = await deletedKey(admin);
  service.later(20 * day);
  t.equal((await admin.post(`/v1/keys/${key.id}/restore`)).body.code, 'not_restorable');

  const created = await admin.post('/v1/recovery-requests', {
    keyId: key.id,
    details: 'By mistake.\nThe export needs it.',
  });
  t.equal(created.status, 201);
  const request = created.body;
  t.equal(created.headers['location'], `/v1/recovery-requests/${request.id}`);
  t.match(request, {
    organizationId: service.organizationId,
    keyId: key.id,
    partnerId: null,
    details: 'By mistake.\nThe export needs it.',
    status: 'open',
    overdue: false,
    createdBy: { type: 'admin', email: 'ada@example.com' },
    answeredAt: null,
    answeredBy: null,
    note: null,
  });
  t.equal(Date.parse(request.respondBy) - Date.parse(request.createdAt), day);
  t.match((await events(admin, 1))[0], {
    action: 'recovery.requested',
    keyId: key.id,
    details: { recoveryRequestId: request.id, details: request.details, respondBy: request.respondBy },
  });

  const twice = await admin.post('/v1/recovery-requests', { keyId: key.id, details: 'Again' });
  t.match(twice, { status: 409, body: { code: 'conflict', recoveryRequestId: request.id } });
  t.match(twice.body.detail, request.id);

  const approved = await operator.post(`/v1/recovery-requests/${request.id}/approve`, { note: 'As agreed by phone.' });
  t.equal(approved.status, 200);
  t.match(approved.body, { status: 'approved', note: 'As agreed by phone.', answeredBy: { type: 'operator' } });
  t.same((await admin.get(`/v1/recovery-requests/${request.id}`)).body, approved.body, 'the admin sees the note');
  t.equal(await verdictOf(service, key), 'valid');
  t.match(await events(admin, 2), [
    {
      action: 'key.restored',
      keyId: key.id,
      actor: { type: 'operator' },
      details: { deleteReason: 'other', recoveryRequestId: request.id },
    },
    {
      action: 'recovery.approved',
      keyId: key.id,
      organizationId: service.organizationId,
      details: { recoveryRequestId: request.id, note: 'As agreed by phone.' },
    },
  ]);
  t.match((await admin.get('/v1/history/verify')).body, { valid: true });
});

t.test('a recovery request is answered once', async (t) => {
  const service = await startService(t);
  const { admin, operator } = service;
  const requestRecovery = async (key: Json) =>
    (await admin.post('/v1/recovery-requests', { keyId: key.id, details: 'Please' })).body as Json;
  const [one, two] = [await requestRecovery(await deletedKey(admin)), await requestRecovery(await deletedKey(admin))];
  const unexplained = await operator.post(`/v1/recovery-requests/${one.id}/decline`, {});
  t.match(unexplained, { status: 400, body: { errors: [{ path: 'body.note' }] } });
  const declined = await operator.post(`/v1/recovery-requests/${one.id}/decline`, {
    note: 'The partner has left.',
  });
  t.match(declined, { status: 200, body: { status: 'declined', note: 'The partner has left.' } });
  t.match((await events(admin, 1))[0], {
    action: 'recovery.declined',
    details: { recoveryRequestId: one.id, note: 'The partner has left.' },
  });
  t.match(await operator.post(`/v1/recovery-requests/${two.id}/approve`), { status: 200, body: { note: null } });
  const count = (await events(admin)).length;
  for (const { id } of [one, two]) {
    for (const answer of ['approve', 'decline']) {
      const reply = await operator.post(`/v1/recovery-requests/${id}/${answer}`, { note: 'Again' });
      t.match(reply, { status: 409, body: { code: 'conflict', detail: /was (approved|declined) at/ } });
    }
  }
  t.equal((await events(admin)).length, count);
  t.equal((await admin.post('/v1/recovery-requests', { keyId: one.keyId, details: 'Please' })).status, 201, 'again');
  t.same(
    (await admin.get('/v1/recovery-requests?status=declined')).body.data.map((item: Json) => item.id),
    [one.id],
  );
});

t.test('a partner is restored with the keys that were deleted with it', async (t) => {
  const service = await startService(t);
  const { admin, operator } = service;
  const { body: partner } = await admin.post('/v1/partners', { email: 'p@p.example', permissions: ['read', 'write'] });
  const [readKey, writeKey] = partner.keys;
  await admin.delete(`/v1/keys/${readKey.id}`);
  const { body: ofKey } = await admin.post('/v1/recovery-requests', { keyId: readKey.id, details: 'This one' });
  await admin.delete(`/v1/partners/${partner.id}`);
  service.later(2 * day);
  const input = { partnerId: partner.id, details: 'Back, please' };
  const { body: request } = await admin.post('/v1/recovery-requests', input);
  t.match(request, { keyId: null, partnerId: partner.id });
  t.equal((await admin.post('/v1/recovery-requests', input)).body.recoveryRequestId, request.id);
  const premature = await operator.post(`/v1/recovery-requests/${ofKey.id}/approve`);
  t.match(premature, { status: 409, body: { code: 'not_restorable', detail: /Partner .* is deleted/ } });

  t.equal((await operator.post(`/v1/recovery-requests/${request.id}/approve`)).status, 200);
  t.equal(await verdictOf(service, writeKey), 'valid');
  t.equal(await verdictOf(service, readKey), 'deleted', 'deleted before its partner was');
  t.same(
    (await events(admin, 3)).map(({ action, partnerId }) => [action, partnerId]),
    ['key.restored', 'partner.restored', 'recovery.approved'].map((action) => [action, partner.id]),
  );
  t.equal(
    (await operator.post(`/v1/recovery-requests/${ofKey.id}/approve`)).status,
    200,
    'after its partner was restored',
  );
  t.equal(await verdictOf(service, readKey), 'valid');
});

t.test('a failed restore has a reason and leaves the request open', async (t) => {
  const service = await startService(t);
  const { admin, operator } = service;
  const approve = (request: Json) => operator.post(`/v1/recovery-requests/${request.id}/approve`);
  const requestRecovery = async (subject: Record<string, string>) => {
    const { status, body } = await admin.post('/v1/recovery-requests', { ...subject, details: 'Please' });
    t.equal(status, 201);
    return body as Json;
  };
  const displaced = await requestRecovery({ keyId: (await deletedKey(admin)).id });
  const leaked = await requestRecovery({ keyId: (await deletedKey(admin)).id });
  await admin.delete(`/v1/keys/${leaked.keyId}?reason=compromised`);
  const filling = [(await admin.post('/v1/keys', {})).body, (await admin.post('/v1/keys', {})).body];
  const { body: partner } = await admin.post('/v1/partners', { email: 'p@p.example', permissions: ['read'] });
  await admin.delete(`/v1/partners/${partner.id}`);
  const replaced = await requestRecovery({ partnerId: partner.id });
  await admin.post('/v1/partners', { email: 'p@p.example', permissions: ['read'] });
  const ofDeletedPartner = await requestRecovery({
    keyId: (await deletedKey(admin, { partnerId: await livePartner(admin) })).id,
  });

  const count = (await events(admin)).length;
  t.match(await approve(displaced), { status: 409, body: { code: 'row_full', keyIds: filling.map(({ id }) => id) } });
  t.match(await approve(leaked), { status: 409, body: { code: 'not_restorable', detail: /compromised/ } });
  t.match(await approve(replaced), { status: 409, body: { code: 'partner_exists' } });
  service.later(30 * day);
  t.match(await approve(ofDeletedPartner), {
    status: 409,
    body: { code: 'not_restorable', detail: /could be restored until/ },
  });
  t.equal((await events(admin)).length, count);
  for (const { id } of [displaced, leaked, replaced, ofDeletedPartner]) {
    t.match((await admin.get(`/v1/recovery-requests/${id}`)).body, { status: 'open', overdue: true, note: null });
    const { status } = await operator.post(`/v1/recovery-requests/${id}/decline`, { note: 'It cannot come back.' });
    t.equal(status, 200);
  }
});

async function livePartner(admin: Client): Promise<string> {
  return (await admin.post('/v1/partners', { email: 'q@p.example', permissions: ['read'] })).body.id;
}

t.test('a recovery request is only accepted for a subject that can be restored', async (t) => {
  const service = await startService(t);
  const { admin } = service;
  const { body: live } = await admin.post('/v1/keys', {});
  const { body: partner } = await admin.post('/v1/partners', { email: 'p@p.example', permissions: ['read'] });
  const leaked = await deletedKey(admin);
  await admin.delete(`/v1/keys/${leaked.id}?reason=compromised`);
  const old = await deletedKey(admin);
  const requestRecovery = (body: Record<string, unknown>) =>
    admin.post('/v1/recovery-requests', { details: 'Please', ...body });
  const count = (await events(admin)).length;
  for (const [subject, status, code] of [
    [{}, 400, 'validation_failed'],
    [{ keyId: old.id, partnerId: partner.id }, 400, 'validation_failed'],
    [{ keyId: 'nonsense' }, 400, 'validation_failed'],
    [{ keyId: old.id, details: '' }, 400, 'validation_failed'],
    [{ keyId: old.id, details: 'a\u0007b' }, 400, 'validation_failed'],
    [{ keyId: 'key_01k9s3v5wqe8n8x4r2m6t7yb0c' }, 404, 'not_found'],
    [{ partnerId: 'partner_01k9s3v5wqe8n8x4r2m6t7yb0c' }, 404, 'not_found'],
    [{ keyId: live.id }, 409, 'conflict'],
    [{ partnerId: partner.id }, 409, 'conflict'],
    [{ keyId: leaked.id }, 409, 'not_restorable'],
  ] as const) {
    t.match(await requestRecovery(subject), { status, body: { code } }, JSON.stringify(subject));
  }
  service.later(30 * day - 3_600_000);
  const { body: hurried } = await requestRecovery({ keyId: old.id });
  const timeLeftMs = Date.parse(hurried.respondBy) - Date.parse(hurried.createdAt);
  t.ok(timeLeftMs > 0 && timeLeftMs <= 3_600_000, 'the answer is due before the key is purged');
  service.later(3_600_000);
  t.match(await requestRecovery({ keyId: old.id }), { status: 409, body: { code: 'not_restorable' } });
  t.equal((await events(admin)).length, count + 1);
});

t.test('operators see the requests of all organizations, overdue ones first, and no page omits one', async (t) => {
  const service = await startService(t);
  const { admin, operator, as } = service;
  const { body: other } = await operator.post('/v1/organizations', { name: 'Other' });
  const inOther = { 'latchkey-organization': other.id };
  const input = { role: 'admin', scopes: ['read', 'write'], name: 'Eve', email: 'eve@example.com' };
  const otherAdmin = as((await operator.post('/v1/access-tokens', input, inOther)).body.token);
  const requestRecovery = async (client: Client): Promise<string> => {
    const { id } = await deletedKey(client);
    return (await client.post('/v1/recovery-requests', { keyId: id, details: 'Please' })).body.id;
  };
  const requestIds: string[] = [];
  for (const client of [admin, otherAdmin, admin, otherAdmin, admin, otherAdmin]) {
    requestIds.push(await requestRecovery(client));
    service.later(6 * 3_600_000);
  }
  const [first, second, third, fourth, fifth, sixth] = requestIds as [string, string, string, string, string, string];
  for (const id of [second, fifth]) await operator.post(`/v1/recovery-requests/${id}/decline`, { note: 'No' });

  const list = async (client: Client, query = '', headers = {}) =>
    (await client.get(`/v1/recovery-requests?limit=200${query}`, headers)).body.data as Json[];
  const idsOf = (requests: Json[]) => requests.map(({ id }) => id);
  const all = await list(operator);
  t.same(
    idsOf(all),
    [first, third, fourth, sixth, fifth, second],
    'open requests by due time, then answered ones, newest first',
  );
  t.same(
    all.map(({ overdue }) => overdue),
    [true, true, false, false, false, false],
  );
  t.same(idsOf(await list(operator, '&status=open')), [first, third, fourth, sixth]);
  t.same(idsOf(await list(operator, '', inOther)), [fourth, sixth, second]);
  t.same(idsOf(await list(admin)), [fifth, third, first], 'an admin sees its own, newest first');
  t.same(idsOf(await list(otherAdmin)), [sixth, fourth, second]);
  t.equal((await admin.get(`/v1/recovery-requests/${second}`)).status, 404);
  t.equal((await operator.get(`/v1/recovery-requests/${second}`, inOther)).status, 200);
  const inOwn = { 'latchkey-organization': service.organizationId };
  t.equal((await operator.get(`/v1/recovery-requests/${second}`, inOwn)).status, 404);
  t.equal((await operator.post(`/v1/recovery-requests/${fourth}/approve`, {}, inOwn)).status, 404);

  const pages = async (client: Client, limit: number, between: () => Promise<unknown>) => {
    const found: string[] = [];
    for (let cursor = ''; found.length < 20; ) {
      const { status, body } = await client.get(`/v1/recovery-requests?limit=${limit}${cursor}`);
      t.equal(status, 200);
      found.push(...idsOf(body.data));
      if (body.nextCursor === null) return found;
      cursor = `&cursor=${body.nextCursor}`;
      await between();
    }
    throw new Error('the pages never end');
  };
  for (const limit of [1, 2, 4, 5]) t.same(await pages(operator, limit, async () => undefined), idsOf(all));
  t.same(await pages(admin, 1, async () => undefined), [fifth, third, first]);
  const answered = [fourth, sixth];
  const pagedIds = await pages(operator, 1, async () => {
    const id = answered.pop();
    if (id !== undefined) await operator.post(`/v1/recovery-requests/${id}/decline`, { note: 'No' });
  });
  t.same(
    [...new Set(pagedIds)].sort(),
    [...requestIds].sort(),
    'requests that are answered between two pages are not omitted',
  );

  for (const [client, cursor] of [
    [operator, 'x'],
    [operator, Buffer.from(first).toString('base64url')],
    [operator, Buffer.from(`open/01/${first}`).toString('base64url')],
    [admin, Buffer.from(`answered/${first}`).toString('base64url')],
  ] as const) {
    t.equal((await client.get(`/v1/recovery-requests?cursor=${cursor}`)).body.code, 'cursor_invalid', cursor);
  }
  t.equal(isUrgency(`open/123/${first}`), true);
  t.equal(isUrgency(`open/${first}`), false);
  t.equal(isUrgency('answered/nonsense'), false);
});

t.test('admins cannot answer requests, and operators can only create one for an organization', async (t) => {
  const { admin, operator, organizationId } = await startService(t);
  const key = await deletedKey(admin);
  const input = { keyId: key.id, details: 'For them' };
  t.equal((await operator.post('/v1/recovery-requests', input)).body.code, 'bad_request');
  const { status, body } = await operator.post('/v1/recovery-requests', input, {
    'latchkey-organization': organizationId,
  });
  t.equal(status, 201);
  t.equal((await admin.post(`/v1/recovery-requests/${body.id}/approve`)).status, 403);
  t.equal((await admin.post(`/v1/recovery-requests/${body.id}/decline`, { note: 'No' })).status, 403);
  t.equal((await admin.get(`/v1/recovery-requests/${body.id}`)).body.status, 'open');
  t.match((await events(admin, 1))[0], { action: 'recovery.requested', actor: { type: 'operator' } });
});
