import { Webhook as StandardWebhook } from 'standardwebhooks';
import { parseKeyring } from '../src/crypto/keyring.ts';
import { startService } from './support/app.ts';
import { dbQuery } from './support/database.ts';
import { keyringOf, keyringText } from './support/keyrings.ts';
import { eventually, runEntry } from './support/process.ts';
import { runRekey } from './support/rekey.ts';
import { t } from './support/tap.ts';
import { deliveriesOf, makeWebhook, type Received, startReceiver, startSending } from './support/webhooks.ts';

t.test('webhook secrets are moved to the primary keyring entry, and still sign', async (t) => {
  const first = await startService(t, { keyring: keyringOf('old', 'new') });
  const { urls, admin, operator } = first;
  const receiver = await startReceiver(t);
  const webhook = await makeWebhook(first, { url: receiver.url, events: ['key.created'] });
  const { body: rotated } = await admin.post(`/v1/webhooks/${webhook.id}/rotate-secret`);
  const deleted = await makeWebhook(first, { url: receiver.url });
  await admin.delete(`/v1/webhooks/${deleted.id}`);
  const doctor = async (...entries: string[]) => {
    const env = { DATABASE_URL: urls.app, LATCHKEY_KEYRING: keyringText(...entries) };
    const process = runEntry(t, 'cli/latchkey.ts', ['doctor'], { env });
    await process.exited;
    return process.output();
  };
  t.match(
    await doctor('new', 'old'),
    /old \(secondary\): .*, the secrets of 1 webhook, the MACs of 3 credentials\. `latchkey rekey` moves them/,
  );
  t.match(await doctor('new'), /wrong {3}The keyring lacks old, under which values are sealed/);

  const { code, output } = await runRekey(t, urls.app, 'new', 'old');
  t.equal(code, 0);
  t.match(output, /^The secrets of 1 webhook were moved to new\.$/m);
  t.match(output, /^Keyring entry new \(primary\): the secrets of 1 webhook, the MACs of 3 credentials\.$/m);
  const rows = await dbQuery(
    urls.superuser,
    'select sealed_keyring_id as now, previous_sealed_keyring_id as before from webhook_endpoints where id = $1',
    [webhook.id],
  );
  t.same(rows, [{ now: 'new', before: 'new' }]);
  const { body: history } = await operator.get('/v1/history?limit=2');
  t.match(history.data.toReversed(), [
    { action: 'keyring.rekey_started', details: { primary: 'new', webhookSecrets: 1 } },
    { action: 'keyring.rekeyed', details: { primary: 'new', webhookSecrets: 1, unopened: 0, locked: 0 } },
  ]);

  // The admin's token was not used since the rotation, so argon2id checks it.
  const last = await startService(t, { urls, keyring: parseKeyring(keyringText('new'), ['old']) });
  startSending(t, last);
  await last.as(admin.token).post('/v1/keys', {});
  await eventually(async () => receiver.received.length === 1);
  const [call] = receiver.received as [Received];
  for (const secret of [webhook.secret, rotated.secret]) {
    const standard = new StandardWebhook(secret);
    t.ok(standard.verify(call.body.toString('utf8'), call.headers as Record<string, string>));
  }
  await eventually(
    async () => (await deliveriesOf({ ...last, admin: last.as(admin.token) }, webhook))[0].status === 'delivered',
  );
  t.match(await runRekey(t, urls.app, 'new'), { code: 0, output: /^Nothing was moved to new\.$/m });
});

t.test('a secret that cannot be unsealed is reported and kept; a locked one is retried', async (t) => {
  const service = await startService(t, { keyring: keyringOf('old') });
  const { urls, client } = service;
  const [good, bad] = [
    await makeWebhook(service, { url: 'http://127.0.0.1:9/' }),
    await makeWebhook(service, { url: 'http://127.0.0.1:9/' }),
  ];
  const flip = 'update webhook_endpoints set sealed = set_byte(sealed, 20, get_byte(sealed, 20) # 1) where id = $1';
  await dbQuery(urls.superuser, flip, [bad.id]);
  const holder = await client.pool.connect();
  await holder.query('begin');
  await holder.query('select from webhook_endpoints where id = $1 for no key update', [good.id]);
  const rekeying = runRekey(t, urls.app, 'new', 'old');
  await eventually(async () => {
    const sql = "select 1 from history where action = 'keyring.rekey_started'";
    return (await dbQuery(urls.app, sql)).length > 0;
  });
  await holder.query('commit');
  holder.release();
  const { code, output } = await rekeying;
  t.equal(code, 1);
  t.match(output, `wrong   ${bad.id} was not moved: its sealed value was changed`);
  t.match(output, /^The secrets of 1 webhook were moved to new\.$/m);
  t.notMatch(output, /whsec_/);
});
