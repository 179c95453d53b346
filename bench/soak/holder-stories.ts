import { generateKeyPairSync, type KeyObject, randomUUID, sign } from 'node:crypto';
import { newEmail } from './key-stories.ts';
import type { Json, SoakSession, SoakStory } from './session.ts';

// What people without an access token do: they fetch keys by claims, rotate and revoke their own keys, and report leaks.

/** Hands keys over by claims: a new key, an existing one and a successor. Other claims end without a redemption. */
export function handOver(session: SoakSession): SoakStory {
  const { callerWith, count, present, retire, target } = session;
  const { call, change, send } = callerWith(target.adminToken);
  const holder = callerWith(undefined);
  let round = 0;
  return async () => {
    round += 1;
    const newPartner = { email: newEmail(), permissions: ['read'], createKeys: false };
    const { id: partnerId } = await change('partner.created', 201, 'POST', '/v1/partners', newPartner);
    const once = { 'idempotency-key': randomUUID() };
    const created = ['key.created', 'claim.created'];
    const claim = await change(created, 201, 'POST', '/v1/claims', { newKey: { partnerId } }, once);
    const replayed = await call(201, 'POST', '/v1/claims', { newKey: { partnerId } }, once);
    if (replayed.code !== claim.code) session.fail('a retry returned another code');
    const page = await holder.send('GET', '/claim');
    if (page.status !== 200) session.fail(`GET /claim: ${page.status}`);
    const redeemed = await holder.change('key.claimed', 200, 'POST', '/v1/claims/redeem', { code: claim.code });
    await holder.call(410, 'POST', '/v1/claims/redeem', { code: claim.code });
    const known = present({ id: redeemed.keyId, key: redeemed.key });
    const { status } = await call(200, 'GET', `/v1/claims/${claim.id}`);
    if (status !== 'redeemed') session.fail(`a redeemed claim is ${status}`);

    // The second claim of the key replaces the first one.
    await change('claim.created', 201, 'POST', '/v1/claims', { keyId: known.id });
    const second = await change(['claim.created', 'claim.cancelled'], 201, 'POST', '/v1/claims', { keyId: known.id });
    await change('claim.cancelled', 200, 'DELETE', `/v1/claims/${second.id}`);
    await holder.call(410, 'POST', '/v1/claims/redeem', { code: second.code });

    const rotated = ['key.created', 'key.rotated', 'claim.created'];
    const third = await change(rotated, 201, 'POST', '/v1/claims', { rotate: { keyId: known.id }, ttlSeconds: 60 });
    // The claims of some partners stay until a job finds that they have expired.
    if (round % 4 === 0) return;
    retire(known);
    session.changedKeys.add(third.key.id);
    await change('partner.deleted', 200, 'DELETE', `/v1/partners/${partnerId}`);
    count('key.deleted', 2);
    count('claim.cancelled');
    const listed = await send('GET', `/v1/claims?partnerId=${partnerId}&status=pending`);
    if (JSON.parse(listed.body).data.length > 0) session.fail('a claim of a deleted partner is pending');
  };
}

/** The holder of a key rotates it, and revokes the old one. */
export function serveOneself(session: SoakSession): SoakStory {
  const { callerWith, count, tally, target } = session;
  const admin = callerWith(target.adminToken);
  return async () => {
    const partner = await admin.change(['partner.created', 'key.created'], 201, 'POST', '/v1/partners', {
      email: newEmail(),
      permissions: ['read'],
    });
    const [first] = partner.keys;
    const asHolder = (key: string): [undefined, Record<string, string>] => [
      undefined,
      { authorization: `Bearer ${key}` },
    ];
    const holder = callerWith(undefined);
    await holder.call(200, 'GET', '/v1/self', ...asHolder(first.key));
    const rotated = ['key.created', 'key.rotated'];
    const second = await holder.change(rotated, 201, 'POST', '/v1/self/rotate', ...asHolder(first.key));
    session.changedKeys.add(first.id);
    await holder.change('key.deleted', 200, 'POST', '/v1/self/revoke', ...asHolder(first.key));
    await holder.call(401, 'GET', '/v1/self', ...asHolder(first.key));
    await holder.call(200, 'GET', '/v1/self', ...asHolder(second.key));
    // Both descriptions of a valid key count as uses.
    tally.allowed += 2;
    await admin.change('partner.deleted', 200, 'DELETE', `/v1/partners/${partner.id}`);
    count('key.deleted');
    session.changedKeys.add(second.id);
    await holder.call(401, 'POST', '/v1/self/rotate', ...asHolder(second.key));
  };
}

/** The key with which GitHub signs its reports. */
export interface GithubSigner {
  identifier: string;
  privateKey: KeyObject;
  /** What GitHub's list of public keys contains. */
  listed: Json;
}

export function createGithubSigner(): GithubSigner {
  const { privateKey, publicKey } = generateKeyPairSync('ec', { namedCurve: 'P-256' });
  const identifier = 'soak';
  const key = publicKey.export({ type: 'spki', format: 'pem' });
  return { identifier, privateKey, listed: { key_identifier: identifier, key, is_current: true } };
}

/** Leaked keys are reported by anybody, by an admin and by GitHub. The organization suspends them. */
export function reportLeaks(session: SoakSession, github: GithubSigner): SoakStory {
  const { callerWith, count, target, tally } = session;
  const { call, change } = callerWith(target.adminToken);
  const anybody = callerWith(undefined);
  return async () => {
    const partner = await change(['partner.created', 'key.created', 'key.created'], 201, 'POST', '/v1/partners', {
      email: newEmail(),
      permissions: ['read', 'write'],
    });
    const [first, second] = partner.keys;
    const report = { key: first.key, source: 'soak', url: `https://git.example.com/${randomUUID()}` };
    session.changedKeys.add(first.id).add(second.id);
    await anybody.change(['key.leak_reported', 'key.suspended'], 202, 'POST', '/v1/leaks', report);
    const repeated = await call(200, 'POST', '/v1/leaks', report);
    if (!repeated.found || repeated.action !== 'suspend')
      session.fail(`a repeated report: ${JSON.stringify(repeated)}`);
    await anybody.call(202, 'POST', '/v1/leaks', { key: `no key ${randomUUID()}` });
    const matches = [
      { token: second.key, type: 'latchkey_api_key', url: report.url, source: 'commit' },
      { token: second.key, type: 'latchkey_api_key', url: report.url, source: 'commit' },
      { token: `${second.key.slice(0, -1)}!`, type: 'latchkey_api_key', url: report.url, source: 'commit' },
    ];
    const labels = await sendSigned(target.url, matches, github);
    tally.requests += 1;
    if (!labels.startsWith('200')) session.fail(`GitHub's report: ${labels}`);
    for (const action of ['key.leak_reported', 'key.suspended']) count(action);
    const shown = await call(200, 'GET', `/v1/keys/${second.id}`);
    if (shown.suspendedReason !== 'leak_reported') session.fail(`a reported key: ${JSON.stringify(shown)}`);
    await change('key.deleted', 200, 'DELETE', `/v1/keys/${second.id}?reason=compromised`);
    await change('partner.deleted', 200, 'DELETE', `/v1/partners/${partner.id}`);
    count('key.deleted');
  };
}

/** @returns status and body */
async function sendSigned(url: string, matches: Json, { identifier, privateKey }: GithubSigner): Promise<string> {
  const body = JSON.stringify(matches);
  const response = await fetch(`${url}/v1/leaks/github`, {
    method: 'POST',
    headers: {
      'content-type': 'application/json',
      'github-public-key-identifier': identifier,
      'github-public-key-signature': sign('sha256', Buffer.from(body), privateKey).toString('base64'),
    },
    body,
  });
  return `${response.status} ${await response.text()}`;
}
