import { setTimeout as delay } from 'node:timers/promises';
import type { Client, Reply } from './client.ts';

/** What an organization looks like after some weeks, done in a few seconds by the same requests that people make. */
export async function fill(admin: Client, verifier: Client, firstKey: string): Promise<void> {
  const ask = (key: string, permission: string) => verifier.post('/v1/verify', { key, permission, ip: '203.0.113.7' });

  await admin.patch('/v1/organization', { name: 'Demo Shop' });
  const { data: keys } = await admin.get('/v1/keys');
  const website = await admin.patch(`/v1/keys/${keys[0].id}`, { name: 'Website', metadata: { team: 'shop' } });
  const own = { ...website, key: firstKey };
  await admin.post('/v1/keys', { name: 'Billing export', allowedIps: ['203.0.113.0/24'] });

  const partners: Record<string, Reply> = {};
  for (const [name, permissions, more] of [
    ['shipping', ['read', 'write'], {}],
    ['payments', ['write'], {}],
    ['analytics', ['read'], { rateLimit: { requests: 50, windowSeconds: 3_600 } }],
    ['marketplace', ['read'], {}],
    ['reseller', ['read', 'write'], {}],
    ['warehouse', ['read'], {}],
  ] as const) {
    partners[name] = await admin.post('/v1/partners', { email: `keys@${name}.example`, name, permissions, ...more });
  }
  const keyOf = (name: string): Reply => partners[name].keys[0];

  // A day of traffic: mostly good, now and then refused, each for another reason.
  for (let round = 0; round < 60; round += 1) {
    await Promise.all([
      ask(own.key, round % 2 === 0 ? 'read' : 'write'),
      ask(keyOf('shipping').key, 'read'),
      ask(keyOf('payments').key, round % 10 === 0 ? 'read' : 'write'),
      ask(keyOf('analytics').key, 'read'),
      ask(keyOf('marketplace').key, 'read'),
    ]);
  }

  // A replacement under way: both keys work, and the old one ends in a week.
  await admin.post(`/v1/keys/${keyOf('shipping').id}/rotate`, { expireOldAfterSeconds: 604_800 });
  // Two looks at one key, which its viewers show.
  for (const reason of ['The partner lost it', 'Moved to another vault']) {
    await admin.post(`/v1/keys/${keyOf('marketplace').id}/reveal`, { reason, recipient: 'keys@marketplace.example' });
  }
  await admin.post(`/v1/keys/${keyOf('payments').id}/suspend`);
  // A mistake that can be undone for a day, and one that an operator is asked to undo.
  await admin.delete(`/v1/partners/${partners['warehouse'].id}`);
  const [lost] = partners['reseller'].keys;
  await admin.delete(`/v1/keys/${lost.id}?reason=unused`);
  await admin.post('/v1/recovery-requests', { keyId: lost.id, details: 'Deleted by mistake; it is still in use.' });
  // A leak: wiped at once, and further uses of it are recorded.
  const leaked = partners['reseller'].keys[1];
  await admin.delete(`/v1/keys/${leaked.id}?reason=compromised`);
  await ask(leaked.key, 'write');
  const usedAgain = ({ data }: Reply) => data[0].action === 'key.used_after_deletion';
  await written(admin, `/v1/keys/${leaked.id}/history?limit=1`, usedAgain);
  await written(admin, `/v1/partners/${partners['analytics'].id}/usage`, ({ total }) => total.rateLimited > 0);
}

/** Uses are counted in memory and written some seconds later. */
async function written(admin: Client, path: string, isThere: (reply: Reply) => boolean): Promise<void> {
  for (const deadline = Date.now() + 15_000; Date.now() < deadline; await delay(100)) {
    if (isThere(await admin.get(path))) return;
  }
  throw new Error(`${path} does not show the uses`);
}
