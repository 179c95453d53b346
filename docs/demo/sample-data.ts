import { setTimeout as delay } from 'node:timers/promises';
import type { Client, Reply } from './client.ts';

/** Creates partners, traffic, reveals and deletions through the API, as an organization has them after some weeks. */
export async function createSampleData(admin: Client, verifier: Client, firstKey: string): Promise<void> {
  const verify = (key: string, permission: string) =>
    verifier.post('/v1/verify', { key, permission, ip: '203.0.113.7' });

  await admin.patch('/v1/organization', {
    name: 'Demo Shop',
    selfService: true,
    maxKeyLifetimeSeconds: 31_536_000,
    idleSuspendAfterDays: 90,
  });
  const { data: keys } = await admin.get('/v1/keys');
  await admin.patch(`/v1/keys/${keys[0].id}`, { name: 'Website', metadata: { team: 'shop' } });
  await admin.post('/v1/keys', { name: 'Billing export', allowedIps: ['203.0.113.0/24'] });

  const partners: Record<string, Reply> = {};
  for (const [name, permissions, options] of [
    ['shipping', ['read', 'write'], {}],
    ['payments', ['write'], {}],
    ['analytics', ['read'], { rateLimit: { requests: 50, windowSeconds: 3_600 } }],
    ['marketplace', ['read'], {}],
    ['reseller', ['read', 'write'], {}],
    ['warehouse', ['read'], {}],
  ] as const) {
    partners[name] = await admin.post('/v1/partners', { email: `keys@${name}.example`, name, permissions, ...options });
  }
  const keyOf = (name: string): Reply => partners[name].keys[0];

  // Payments lacks permission for every tenth request, and analytics exceeds its rate limit.
  for (let round = 0; round < 60; round += 1) {
    await Promise.all([
      verify(firstKey, round % 2 === 0 ? 'read' : 'write'),
      verify(keyOf('shipping').key, 'read'),
      verify(keyOf('payments').key, round % 10 === 0 ? 'read' : 'write'),
      verify(keyOf('analytics').key, 'read'),
      verify(keyOf('marketplace').key, 'read'),
    ]);
  }

  // Both keys work for a week.
  await admin.post(`/v1/keys/${keyOf('shipping').id}/rotate`, { expireOldAfterSeconds: 604_800 });
  for (const reason of ['The partner lost it', 'Moved to another vault']) {
    await admin.post(`/v1/keys/${keyOf('marketplace').id}/reveal`, { reason, recipient: 'keys@marketplace.example' });
  }
  await admin.post(`/v1/keys/${keyOf('payments').id}/suspend`);
  // An admin can restore this partner for a day. The key below needs an operator.
  await admin.delete(`/v1/partners/${partners['warehouse'].id}`);
  const [deletedByMistake, leaked] = partners['reseller'].keys;
  await admin.delete(`/v1/keys/${deletedByMistake.id}?reason=unused`);
  await admin.post('/v1/recovery-requests', {
    keyId: deletedByMistake.id,
    details: 'Deleted by mistake; it is still in use.',
  });
  // The use of a deleted key is recorded in history.
  await admin.delete(`/v1/keys/${leaked.id}?reason=compromised`);
  await verify(leaked.key, 'write');
  await poll(
    admin,
    `/v1/keys/${leaked.id}/history?limit=1`,
    ({ data }) => data[0].action === 'key.used_after_deletion',
  );
  await poll(admin, `/v1/partners/${partners['analytics'].id}/usage`, ({ total }) => total.rateLimited > 0);
}

/** Polls, because uses are written some seconds after they were counted. */
async function poll(admin: Client, path: string, isComplete: (reply: Reply) => boolean): Promise<void> {
  for (const deadline = Date.now() + 15_000; Date.now() < deadline; await delay(100)) {
    if (isComplete(await admin.get(path))) return;
  }
  throw new Error(`${path} does not contain the uses`);
}
