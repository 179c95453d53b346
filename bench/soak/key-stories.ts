import { randomUUID } from 'node:crypto';
import { foreignToken, sha256Of } from '../../test/support/imports.ts';
import type { Json, SoakSession, SoakStory } from './session.ts';

// What admins do with partners and keys.

export const newEmail = () => `${randomUUID()}@soak.example`;

/** Creates a partner, changes its keys in every way, and deletes it. */
export function livePartnerLife(session: SoakSession): SoakStory {
  const { callerWith, count, pause, present, retire, target } = session;
  const { call, change, send } = callerWith(target.adminToken);
  return async () => {
    const externalId = `customer-${randomUUID()}`;
    const newPartner = { email: newEmail(), permissions: ['read', 'write'], externalId, metadata: { plan: 'soak' } };
    const once = { 'idempotency-key': randomUUID() };
    const created = ['partner.created', 'key.created', 'key.created'];
    const partner = await change(created, 201, 'POST', '/v1/partners', newPartner, once);
    const replayed = await call(201, 'POST', '/v1/partners', newPartner, once);
    if (replayed.id !== partner.id) session.fail('a retry created another partner');
    const first = present(
      partner.keys.find(({ permission }: Json) => permission === 'read'),
      externalId,
    );
    const path = `/v1/keys/${first.id}`;
    const { headers } = await send('GET', path);
    const tag = { 'if-match': String(headers.etag) };
    const settings = { name: `Named ${Date.now()}`, scopes: ['invoices:read'], metadata: { team: 'soak' } };
    await change('key.updated', 200, 'PATCH', path, settings, tag);
    await call(412, 'PATCH', path, { name: 'Stale' }, tag);
    await change('partner.updated', 200, 'PATCH', `/v1/partners/${partner.id}`, { metadata: { plan: 'bigger' } });
    await change('key.revealed', 200, 'POST', `${path}/reveal`, { reason: 'soak', recipient: 'ops@soak.example' });
    const second = present(await change(['key.created', 'key.rotated'], 201, 'POST', `${path}/rotate`, {}), externalId);
    first.isValid = false;
    await call(409, 'POST', `${path}/rotate`, {});
    await change('key.suspended', 200, 'POST', `${path}/suspend`, { reason: 'Looks odd' });
    await change('key.resumed', 200, 'POST', `${path}/resume`);
    await change('key.deleted', 200, 'DELETE', `${path}?reason=unused`);
    await change('key.restored', 200, 'POST', `${path}/restore`);
    first.isValid = true;
    await pause(5);
    for (const known of [first, second]) known.isValid = false;
    await change('partner.suspended', 200, 'POST', `/v1/partners/${partner.id}/suspend`);
    await change('partner.resumed', 200, 'POST', `/v1/partners/${partner.id}/resume`);
    retire(first, second);
    await change('partner.deleted', 200, 'DELETE', `/v1/partners/${partner.id}`);
    count('key.deleted', 3);
  };
}

/** Imports keys, and changes them in bulk. Most partners stay with their keys, and all of these must verify at the end. */
export function importKeys(session: SoakSession, imported: string[]): SoakStory {
  const { callerWith, count, present, retire, target } = session;
  const { call, change } = callerWith(target.adminToken);
  let round = 0;
  return async () => {
    round += 1;
    const externalId = `import-${randomUUID()}`;
    const newPartner = { email: newEmail(), permissions: ['read'], externalId, createKeys: false };
    const partner = await change('partner.created', 201, 'POST', '/v1/partners', newPartner);
    const tokens = [foreignToken(), foreignToken()] as const;
    const of = { partnerExternalId: externalId, permission: 'read', metadata: { batch: `batch-${round}` } };
    const entries = [
      { ...of, plaintext: tokens[0] },
      { ...of, sha256: sha256Of(tokens[1]), lastFour: tokens[1].slice(-4) },
    ];
    await call(200, 'POST', '/v1/keys/import', { entries, dryRun: true });
    const once = { 'idempotency-key': randomUUID() };
    const { data } = await change(['key.imported', 'key.imported'], 201, 'POST', '/v1/keys/import', { entries }, once);
    await call(201, 'POST', '/v1/keys/import', { entries }, once);
    const { code } = await call(409, 'POST', '/v1/keys/import', { entries });
    if (!['key_exists', 'row_full', 'validation_failed'].includes(code)) session.fail(`a second import: ${code}`);
    const known = data.map(({ id }: Json, index: number) => present({ id, key: tokens[index] }, externalId));
    const revealed = await change('key.revealed', 200, 'POST', `/v1/keys/${known[0].id}/reveal`, { reason: 'soak' });
    if (revealed.key !== tokens[0]) session.fail('an imported key was revealed with another text');
    await call(403, 'POST', `/v1/keys/${known[1].id}/reveal`, {});
    for (const key of known) key.isValid = false;
    const filter = { partnerId: partner.id, 'metadata.batch': `batch-${round}` };
    const bulk = async (body: Json, changed: number, action?: string) => {
      const reply = await call(200, 'POST', '/v1/keys/bulk', { filter, ...body });
      if (reply.changed.length !== changed) session.fail(`bulk ${body.action}: ${JSON.stringify(reply)}`);
      if (action !== undefined) count(action, changed);
    };
    await bulk({ action: 'suspend', dryRun: true }, 2);
    await bulk({ action: 'suspend', reason: 'In bulk' }, 2, 'key.suspended');
    await bulk({ action: 'resume' }, 2, 'key.resumed');
    for (const key of known) key.isValid = true;
    if (round % 4 !== 0) {
      imported.push(...tokens);
      return;
    }
    retire(...known);
    await bulk({ action: 'delete', reason: 'unused' }, 2, 'key.deleted');
    await change('partner.deleted', 200, 'DELETE', `/v1/partners/${partner.id}`);
  };
}

/** Lets keys expire; new keys take their places. */
export function replaceExpiredKeys(session: SoakSession): SoakStory {
  const { callerWith, count, target } = session;
  const { call, change } = callerWith(target.adminToken);
  return async () => {
    const newPartner = { email: newEmail(), permissions: ['write'], createKeys: false };
    const partner = await change('partner.created', 201, 'POST', '/v1/partners', newPartner);
    const { id: partnerId } = partner;
    let expiresAtMs = 0;
    for (let place = 0; place < 2; place++) {
      // Long enough for a busy machine: the service rejects an expiry in the past.
      expiresAtMs = Date.now() + 4_000;
      const expiresAt = new Date(expiresAtMs).toISOString();
      await change('key.created', 201, 'POST', '/v1/keys', { partnerId, expiresAt });
    }
    while (Date.now() < expiresAtMs + 200) await session.pause();
    await change(['key.deleted', 'key.created'], 201, 'POST', '/v1/keys', { partnerId });
    await change(['key.deleted', 'key.created'], 201, 'POST', '/v1/keys', { partnerId });
    await call(409, 'POST', '/v1/keys', { partnerId });
    await change('partner.deleted', 200, 'DELETE', `/v1/partners/${partnerId}`);
    count('key.deleted', 2);
  };
}

/** Uses a key with a limit of its own more often than the limit allows. */
export function exceedLimit(session: SoakSession): SoakStory {
  const { callerWith, tally, target } = session;
  const { change } = callerWith(target.adminToken);
  const backend = callerWith(target.verifierToken);
  return async () => {
    const newPartner = { email: newEmail(), permissions: ['read'], createKeys: false };
    const { id: partnerId } = await change('partner.created', 201, 'POST', '/v1/partners', newPartner);
    const newKey = { partnerId, rateLimit: { requests: 3, windowSeconds: 60 }, allowedIps: ['203.0.113.0/24'] };
    const { id, key } = await change('key.created', 201, 'POST', '/v1/keys', newKey);
    const use = { key, permission: 'read', ip: '203.0.113.7' };
    const codes: string[] = [];
    for (let times = 0; times < 5; times++) codes.push((await backend.call(200, 'POST', '/v1/verify', use)).code);
    const allowed = codes.filter((code) => code === 'valid').length;
    tally.allowed += allowed;
    tally.rateLimited += codes.filter((code) => code === 'rate_limited').length;
    // A window may end between two uses.
    if (allowed < 3) session.fail(`a key with a limit of 3: ${codes.join(' ')}`);
    const elsewhere = await backend.call(200, 'POST', '/v1/verify', { ...use, ip: '198.51.100.1' });
    if (elsewhere.code !== 'ip_not_allowed') session.fail(`from another address: ${elsewhere.code}`);
    session.changedKeys.add(id);
    await change('key.deleted', 200, 'DELETE', `/v1/keys/${id}`);
    const late = await backend.call(200, 'POST', '/v1/verify', use);
    if (late.code !== 'deleted') session.fail(`after the deletion: ${late.code}`);
    await change('partner.deleted', 200, 'DELETE', `/v1/partners/${partnerId}`);
  };
}
