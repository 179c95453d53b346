import { newEmail } from './key-stories.ts';
import type { SoakSession, SoakStory } from './session.ts';

// What admins and operators do beside the keys: tokens, policies, recovery, webhooks, and requests that are rejected.

/** Deleted keys and partners are recovered by an operator, or not. */
export function recover(session: SoakSession): SoakStory {
  const { callerWith, count, target } = session;
  const admin = callerWith(target.adminToken);
  const operator = callerWith(target.operatorToken);
  return async () => {
    const partner = await admin.change(['partner.created', 'key.created'], 201, 'POST', '/v1/partners', {
      email: newEmail(),
      permissions: ['read'],
    });
    const [{ id: keyId }] = partner.keys;
    const request = (subject: { keyId: string } | { partnerId: string }) =>
      admin.change('recovery.requested', 201, 'POST', '/v1/recovery-requests', { ...subject, details: 'By mistake' });
    await admin.change('key.deleted', 200, 'DELETE', `/v1/keys/${keyId}`);
    const declined = await request({ keyId });
    const note = { note: 'Not now' };
    await operator.change('recovery.declined', 200, 'POST', `/v1/recovery-requests/${declined.id}/decline`, note);
    const approved = await request({ keyId });
    const restored = ['recovery.approved', 'key.restored'];
    await operator.change(restored, 200, 'POST', `/v1/recovery-requests/${approved.id}/approve`, {});
    await operator.call(409, 'POST', `/v1/recovery-requests/${approved.id}/approve`, {});
    await admin.change(['partner.deleted', 'key.deleted'], 200, 'DELETE', `/v1/partners/${partner.id}`);
    const whole = await request({ partnerId: partner.id });
    const both = ['recovery.approved', 'partner.restored', 'key.restored'];
    await operator.change(both, 200, 'POST', `/v1/recovery-requests/${whole.id}/approve`, note);
    await admin.change(['partner.deleted', 'key.deleted'], 200, 'DELETE', `/v1/partners/${partner.id}`);
    await admin.change(['partner.restored', 'key.restored'], 200, 'POST', `/v1/partners/${partner.id}/restore`);
    session.changedKeys.add(keyId);
    await admin.change('partner.deleted', 200, 'DELETE', `/v1/partners/${partner.id}`);
    count('key.deleted');
  };
}

/** Tokens with and without the scope `reveal`, the viewers of a key, and requests that are rejected. */
export function useTokens(session: SoakSession): SoakStory {
  const { callerWith, target } = session;
  const admin = callerWith(target.adminToken);
  const verifier = callerWith(target.verifierToken);
  const operator = callerWith(target.operatorToken);
  return async () => {
    const newToken = (scopes: string[]) => ({
      role: 'admin',
      name: 'Soak',
      email: newEmail(),
      scopes,
      expiresAt: new Date(Date.now() + 864_000_000).toISOString(),
    });
    const create = (scopes: string[]) =>
      admin.change('access_token.created', 201, 'POST', '/v1/access-tokens', newToken(scopes));
    const [writing, revealing] = [await create(['read', 'write']), await create(['read', 'reveal'])];
    const [writer, revealer] = [callerWith(writing.token), callerWith(revealing.token)];
    const { id, partnerId } = await createKey();
    await writer.call(403, 'POST', `/v1/keys/${id}/reveal`, {});
    await revealer.change('key.revealed', 200, 'POST', `/v1/keys/${id}/reveal`, { reason: 'soak' });
    await revealer.call(403, 'DELETE', `/v1/keys/${id}`);
    await admin.change('key.revealed', 200, 'POST', `/v1/keys/${id}/reveal`, {});
    const viewers = await admin.call(200, 'GET', `/v1/keys/${id}/viewers`);
    if (viewers.data.length !== 2) session.fail(`viewers: ${JSON.stringify(viewers)}`);
    await operator.call(403, 'POST', `/v1/keys/${id}/reveal`, {}, { 'latchkey-organization': target.organizationId });
    await verifier.call(403, 'POST', '/v1/keys', {});
    await admin.call(400, 'POST', '/v1/keys', { unknown: true });
    await admin.call(404, 'GET', '/v1/keys/key_01k9s3v5wqe8n8x4r2m6t7yb0c');
    for (const token of [writing, revealing])
      await admin.change('access_token.deleted', 200, 'DELETE', `/v1/access-tokens/${token.id}`);
    await writer.call(401, 'GET', '/v1/keys');
    session.changedKeys.add(id);
    await admin.change(['partner.deleted', 'key.deleted'], 200, 'DELETE', `/v1/partners/${partnerId}`);

    async function createKey(): Promise<{ id: string; partnerId: string }> {
      const partner = await writer.change(['partner.created', 'key.created'], 201, 'POST', '/v1/partners', {
        email: newEmail(),
        permissions: ['write'],
      });
      return { id: partner.keys[0].id, partnerId: partner.id };
    }
  };
}

/** Policies change by `If-Match`, and limits apply to new keys. Some keys expire soon, so that a job announces it. */
export function changePolicies(session: SoakSession): SoakStory {
  const { callerWith, count, target } = session;
  const { call, change, send } = callerWith(target.adminToken);
  let round = 0;
  return async () => {
    round += 1;
    const { headers } = await send('GET', '/v1/organization');
    const tag = { 'if-match': String(headers.etag) };
    const defaultKeyLifetimeSeconds = 7_776_000 + round;
    await change('organization.updated', 200, 'PATCH', '/v1/organization', { defaultKeyLifetimeSeconds }, tag);
    await call(412, 'PATCH', '/v1/organization', { defaultKeyLifetimeSeconds: 1 }, tag);
    const rateLimit = { requests: 1_000_000_000 - (round % 2), windowSeconds: 60 };
    await change('rate_limit.updated', 200, 'PUT', '/v1/rate-limit', rateLimit);
    const newPartner = { email: newEmail(), permissions: ['write'], createKeys: false };
    const { id: partnerId } = await change('partner.created', 201, 'POST', '/v1/partners', newPartner);
    const { expiresAt } = await change('key.created', 201, 'POST', '/v1/keys', { partnerId });
    if (expiresAt === null) session.fail('a key has no expiry, in spite of the default');
    const tooLate = new Date(Date.now() + 1_000 * 366 * 86_400_000).toISOString();
    await call(400, 'POST', '/v1/keys', { partnerId, expiresAt: tooLate });
    const soon = new Date(Date.now() + 3_600_000).toISOString();
    await change('key.created', 201, 'POST', '/v1/keys', { partnerId, expiresAt: soon });
    if (round % 4 === 0) return;
    await change('partner.deleted', 200, 'DELETE', `/v1/partners/${partnerId}`);
    count('key.deleted', 2);
  };
}

/** A webhook of one partner from its creation to its deletion. */
export function manageWebhooks(session: SoakSession, receiverUrl: string): SoakStory {
  const { callerWith, target } = session;
  const { call, change, send } = callerWith(target.adminToken);
  return async () => {
    const newPartner = { email: newEmail(), permissions: ['read'], createKeys: false };
    const { id: partnerId } = await change('partner.created', 201, 'POST', '/v1/partners', newPartner);
    const newWebhook = { url: `${receiverUrl}/partner`, events: ['*'], partnerId };
    const webhook = await change('webhook.created', 201, 'POST', '/v1/webhooks', newWebhook);
    const path = `/v1/webhooks/${webhook.id}`;
    await change('webhook.updated', 200, 'PATCH', path, { description: 'Soak' });
    await change('webhook.tested', 200, 'POST', `${path}/test`);
    await change('webhook.secret_rotated', 200, 'POST', `${path}/rotate-secret`);
    await change('partner.updated', 200, 'PATCH', `/v1/partners/${partnerId}`, { name: 'Partner' });
    // Otherwise the pending deliveries would fail when the webhook is disabled.
    const isDelivered = async () => (await call(200, 'GET', `${path}/deliveries?status=pending`)).data.length === 0;
    while (!(await isDelivered())) await session.pause();
    const { data } = JSON.parse((await send('GET', `${path}/deliveries?status=delivered`)).body);
    if (data.length < 2) session.fail(`deliveries of a partner's webhook: ${JSON.stringify(data)}`);
    await change('webhook.redelivered', 200, 'POST', `${path}/deliveries/${data[0].id}/redeliver`);
    while (!(await isDelivered())) await session.pause();
    await change('webhook.disabled', 200, 'POST', `${path}/disable`);
    await change('webhook.enabled', 200, 'POST', `${path}/enable`);
    await change('webhook.deleted', 200, 'DELETE', path);
    await change('partner.deleted', 200, 'DELETE', `/v1/partners/${partnerId}`);
  };
}
