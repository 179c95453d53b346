import type { Test } from 'tap';
import { generateKeyring, parseKeyring } from '../src/crypto/keyring.ts';
import { type Json, type Reply, startService, type TestService } from './support/app.ts';
import { dbQuery } from './support/database.ts';
import { keyringOf, keyringText } from './support/keyrings.ts';
import { proxyThatLoses } from './support/lossy-proxy.ts';
import { eventually, runEntry } from './support/process.ts';
import { runRekey } from './support/rekey.ts';
import { t } from './support/tap.ts';

async function redeem({ app }: Pick<TestService, 'app'>, code: string): Promise<Reply> {
  const response = await app.inject({ method: 'POST', url: '/v1/claims/redeem', payload: { code } });
  return { status: response.statusCode, headers: response.headers, body: response.json() };
}

const actionsOf = async ({ admin }: TestService, claim: Json): Promise<string[]> =>
  (await admin.get(`/v1/history?keyId=${claim.keyId}`)).body.data.map((event: Json) => event.action).toReversed();

/** A claim with the key of a partner of its own. */
async function newClaim({ admin }: TestService, ttlSeconds = 3_600): Promise<Json> {
  const partner = { email: `${Math.random()}@p.example`, permissions: ['read'], createKeys: false };
  const { body } = await admin.post('/v1/partners', partner);
  return (await admin.post('/v1/claims', { newKey: { partnerId: body.id }, ttlSeconds })).body;
}

async function doctor(t: Test, url: string, ...keyring: string[]): Promise<string> {
  const env = { DATABASE_URL: url, LATCHKEY_KEYRING: keyringText(...keyring) };
  const process = runEntry(t, 'cli/latchkey.ts', ['doctor'], { env });
  await process.exited;
  return process.output();
}

t.test('without the keyring, the database role cannot redeem, move, prolong or revive a claim', async (t) => {
  const service = await startService(t, { keyring: keyringOf('k1') });
  const { urls, admin } = service;
  const own = await newClaim(service);
  const victim = await newClaim(service);
  const row = async (claim: Json) =>
    (await dbQuery(urls.app, 'select * from claims where id = $1', [claim.id]))[0] ?? {};
  const protectedNames = ['code_hash', 'sealed', 'sealed_keyring_id', 'mac', 'mac_keyring_id'];
  /** Makes the claim pending again with secrets that were read before. */
  const revive = (claim: Json, saved: Record<string, unknown>) =>
    dbQuery(
      urls.app,
      `update claims set ended_at = null, end_reason = null, redeemed_from = null,
         code_hash = $2, sealed = $3, sealed_keyring_id = $4, mac = $5, mac_keyring_id = $6 where id = $1`,
      [claim.id, ...protectedNames.map((name) => saved[name])],
    );
  const change = (claim: Json, set: string) => dbQuery(urls.app, `update claims set ${set} where id = '${claim.id}'`);
  const from = (column: string) => `(select ${column} from claims where id = '${victim.id}')`;

  const forgeries = [
    `key_id = '${victim.keyId}'`,
    `partner_id = ${from('partner_id')}`,
    `sealed = ${from('sealed')}`,
    `sealed = ${from('sealed')}, key_id = '${victim.keyId}'`,
    `sealed = ${from('sealed')}, mac = ${from('mac')}`,
    `expires_at = expires_at + interval '1 year'`,
    `sealed_keyring_id = 'gone'`,
    `mac_keyring_id = 'gone'`,
    `sealed = set_byte(sealed, 20, get_byte(sealed, 20) # 1)`,
  ];
  const saved = await row(own);
  for (const forgery of forgeries) {
    const partnerOfVictim = forgery.includes('key_id') ? await releaseKey(service, victim) : undefined;
    await change(own, forgery);
    t.equal((await redeem(service, own.code)).status, 410, forgery);
    await dbQuery(
      urls.app,
      `update claims set key_id = $2, partner_id = $3, expires_at = $4, sealed = $5, sealed_keyring_id = $6, mac = $7,
         mac_keyring_id = $8 where id = $1`,
      [
        own.id,
        ...['key_id', 'partner_id', 'expires_at', 'sealed', 'sealed_keyring_id', 'mac', 'mac_keyring_id'].map(
          (name) => saved[name],
        ),
      ],
    );
    await partnerOfVictim?.();
  }
  await change(victim, `code_hash = (select code_hash from claims where id = '${own.id}')`);
  t.equal((await redeem(service, victim.code)).status, 410, "another code's hash");
  t.match(await doctor(t, urls.app, 'k1'), new RegExp(`wrong .*${victim.id}`), 'doctor names the row');
  t.same(
    (await actionsOf(service, own)).filter((action) => action === 'key.claimed'),
    [],
    'nothing false is recorded',
  );

  const cancelled = await newClaim(service);
  const expired = await newClaim(service, 60);
  const deleted = await newClaim(service);
  const rows = [await row(cancelled), await row(expired), await row(deleted), await row(own)];
  t.equal((await redeem(service, own.code)).status, 200, 'the unchanged row works');
  await admin.delete(`/v1/claims/${cancelled.id}`);
  await admin.delete(`/v1/keys/${deleted.keyId}`);
  await admin.post(`/v1/keys/${deleted.keyId}/restore`);
  service.later(61_000);
  t.equal((await admin.post('/v1/claims', { keyId: expired.keyId })).status, 201);
  await admin.delete(`/v1/claims/${(await admin.get(`/v1/claims?keyId=${expired.keyId}`)).body.data[0].id}`);
  for (const [index, claim] of [cancelled, expired, deleted, own].entries()) {
    await revive(claim, rows[index] ?? {});
    t.equal((await redeem(service, claim.code)).status, 410, `revived: ${claim.id}`);
  }
});

/** Moves the victim's claim to another key for a while, so that only one pending claim names the key. */
async function releaseKey({ urls, admin }: TestService, victim: Json): Promise<() => Promise<unknown>> {
  const { body: key } = await admin.post('/v1/keys', {});
  await dbQuery(urls.app, 'update claims set key_id = $2 where id = $1', [victim.id, key.id]);
  return async () => {
    await dbQuery(urls.app, 'update claims set key_id = $2 where id = $1', [victim.id, victim.keyId]);
    await admin.delete(`/v1/keys/${key.id}`);
  };
}

t.test('pending claims move to a new keyring entry, and work without the old one', async (t) => {
  const first = await startService(t, { keyring: keyringOf('old', 'new') });
  const { urls } = first;
  const [one, two, ended] = [await newClaim(first), await newClaim(first), await newClaim(first)];
  await redeem(first, ended.code);
  t.match(
    await doctor(t, urls.app, 'new', 'old'),
    /old \(secondary\): .*2 pending claims.*`latchkey rekey` moves them/,
  );
  t.match(await doctor(t, urls.app, 'new'), /wrong {3}The keyring lacks old/);
  const { code, output } = await runRekey(t, urls.app, 'new', 'old');
  t.equal(code, 0);
  t.match(output, /^2 pending claims were moved to new\.$/m);
  t.match(output, /new \(primary\): .*2 pending claims/);
  const { body: history } = await first.operator.get('/v1/history?limit=2');
  t.match(history.data.toReversed(), [
    { action: 'keyring.rekey_started', details: { primary: 'new', claims: 2 } },
    { action: 'keyring.rekeyed', details: { primary: 'new', claims: 2, unopened: 0, locked: 0 } },
  ]);
  t.match(await runRekey(t, urls.app, 'new', 'old'), { code: 0, output: /^Nothing was moved to new\.$/m });

  const last = await startService(t, { urls, keyring: parseKeyring(keyringText('new'), ['old']) });
  for (const claim of [one, two]) {
    const { status, body } = await redeem(last, claim.code);
    t.match([status, body.keyId], [200, claim.keyId]);
    t.equal((await first.verifier.post('/v1/verify', { key: body.key, permission: 'read' })).body.code, 'valid');
  }
});

t.test('a claim under a lost entry is gone, and rekey reports a changed one and leaves it', async (t) => {
  const service = await startService(t, { keyring: keyringOf('old') });
  const { urls } = service;
  const [good, bad] = [await newClaim(service), await newClaim(service)];
  const without = await startService(t, { urls, keyring: parseKeyring(keyringText('new'), ['old']) });
  t.equal((await redeem(without, good.code)).status, 410);
  await dbQuery(urls.app, `update claims set expires_at = expires_at + interval '1 day' where id = $1`, [bad.id]);
  const { code, output } = await runRekey(t, urls.app, 'new', 'old');
  t.equal(code, 1);
  t.match(output, new RegExp(`${bad.id} was not moved: its row was changed`));
  const moved = await startService(t, { urls, keyring: keyringOf('new', 'old') });
  t.equal((await redeem(moved, good.code)).status, 200);
  t.equal((await redeem(moved, bad.code)).status, 410);
});

for (const what of ['the commit', 'the reply to it'] as const) {
  t.test(`if ${what} is lost, the key is not shown, and is handed over at most once`, async (t) => {
    const keyring = generateKeyring(new Date());
    const service = await startService(t, { keyring: parseKeyring(keyring) });
    const { urls } = service;
    const claim = await newClaim(service);
    const proxy = await proxyThatLoses(t, urls.app, { what, marker: 'update "claims"' });
    const env = {
      DATABASE_URL: proxy.url,
      LISTEN_DATABASE_URL: urls.app,
      DATABASE_TIMEOUT_MS: '1500',
      LATCHKEY_KEYRING: keyring,
      PORT: '0',
    };
    const process = runEntry(t, 'server.ts', [], { env });
    const [, url = ''] = await process.until(/Server listening at (http:\/\/[^"]+)"/);
    const response = await fetch(`${url}/v1/claims/redeem`, {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify({ code: claim.code }),
    });
    await proxy.lost;
    t.equal(response.status, 503);
    t.notMatch(await response.text(), /lk_k_/, 'without an acknowledged commit nothing is opened');
    process.child.kill('SIGKILL');
    await process.exited;
    const isCommitted = what === 'the reply to it';
    await eventually(async () => (await redeem(service, claim.code)).status === (isCommitted ? 410 : 200));
    t.equal((await actionsOf(service, claim)).filter((action) => action === 'key.claimed').length, 1);
    const { body } = await service.admin.get(`/v1/claims/${claim.id}`);
    t.equal(body.status, 'redeemed');
  });
}

t.test('a redemption that cannot be recorded hands over nothing, and the claim stays', async (t) => {
  const service = await startService(t);
  const { urls } = service;
  const claim = await newClaim(service);
  const role = new URL(urls.app).username;
  await dbQuery(urls.owner, `revoke execute on function history_append(text, text) from ${role}`);
  const failed = await redeem(service, claim.code);
  t.equal(failed.status, 503);
  t.notMatch(JSON.stringify(failed.body), /lk_k_/);
  await dbQuery(urls.owner, `grant execute on function history_append(text, text) to ${role}`);
  t.equal((await redeem(service, claim.code)).status, 200);
});
