import { randomUUID } from 'node:crypto';
import fc from 'fast-check';
import { Webhook as StandardWebhook } from 'standardwebhooks';
import { Webhook as SvixWebhook } from 'svix';
import { Secret } from '../src/crypto/secret.ts';
import { generateWebhookSecret, type SignedDelivery, signDelivery } from '../src/webhooks/signature.ts';
import { listenHttp } from './support/listeners.ts';
import { t } from './support/tap.ts';
import { startWebhookClient } from './support/webhook-client.ts';

// Signatures are checked by the libraries that receivers use.

const now = () => Math.floor(Date.now() / 1000);

/** Whether both libraries accept a delivery (raw bytes) with this secret. They must agree. */
function isAccepted(secret: Secret, headers: Record<string, string>, body: Buffer): boolean {
  const verdicts = [StandardWebhook, SvixWebhook].map((Webhook) => {
    try {
      new Webhook(secret.reveal()).verify(body, headers);
      return true;
    } catch {
      return false;
    }
  });
  if (verdicts[0] !== verdicts[1]) throw new Error('the two libraries do not agree');
  return verdicts[0] === true;
}

const delivery = (body: string): SignedDelivery => ({ id: `msg_${randomUUID()}`, timestampSeconds: now(), body });

t.test("the specification's example gets the documented signature", async (t) => {
  const secret = new Secret('whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw');
  const body = '{"test": 2432232314}';
  t.same(signDelivery([secret], { id: 'msg_p5jXN8AQM9LWM0D4loKWxJek', timestampSeconds: 1614265330, body }), {
    'webhook-id': 'msg_p5jXN8AQM9LWM0D4loKWxJek',
    'webhook-timestamp': '1614265330',
    'webhook-signature': 'v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=',
  });
});

t.test('a secret has 32 random bytes, and cannot be printed', async (t) => {
  const secrets = Array.from({ length: 100 }, generateWebhookSecret);
  for (const secret of secrets) {
    t.match(secret.reveal(), /^whsec_[A-Za-z0-9+/]{43}=$/);
    t.equal(Buffer.from(secret.reveal().slice('whsec_'.length), 'base64').length, 32);
    t.equal(`${secret} ${JSON.stringify({ secret })}`, '[secret] {"secret":"[secret]"}');
  }
  t.equal(new Set(secrets.map((secret) => secret.reveal())).size, 100);
});

t.test('receivers accept the raw bytes of a delivery, and nothing else', async (t) => {
  const receiver = await listenHttp(t);
  const { post } = startWebhookClient(t, { opened: ['127.0.0.1'] });
  const secret = generateWebhookSecret();
  const body = '{"type":"key.created","data":{"name":"Zoë \u{1f511} \\u0000 \u2028"}}';
  const sent = delivery(body);
  await post(`http://127.0.0.1:${receiver.port}/`, { ...signDelivery([secret], sent) }, body);
  const [arrived] = receiver.arrived;
  if (arrived === undefined) throw new Error('nothing arrived');
  const headers = Object.fromEntries(
    Object.entries(arrived.headers).filter(([name]) => name.startsWith('webhook-')),
  ) as Record<string, string>;
  t.ok(isAccepted(secret, headers, arrived.body));
  t.notOk(isAccepted(generateWebhookSecret(), headers, arrived.body), 'another secret');
  t.notOk(isAccepted(secret, headers, Buffer.concat([arrived.body, Buffer.from(' ')])), 'another body');
  t.notOk(isAccepted(secret, { ...headers, 'webhook-id': 'msg_other' }, arrived.body), 'another id');
  const other = String(sent.timestampSeconds + 1);
  t.notOk(isAccepted(secret, { ...headers, 'webhook-timestamp': other }, arrived.body), 'another time');
  const old = signDelivery([secret], { ...sent, timestampSeconds: now() - 301 });
  t.notOk(isAccepted(secret, { ...old }, arrived.body), 'signed too long ago');
});

t.test('during a rotation both secrets verify a delivery; after it only the new one', async (t) => {
  const [before, after] = [generateWebhookSecret(), generateWebhookSecret()];
  const sent = delivery('{"type":"key.deleted"}');
  const body = Buffer.from(sent.body);
  const during = { ...signDelivery([after, before], sent) };
  t.match(during['webhook-signature'], /^v1,[A-Za-z0-9+/]{43}= v1,[A-Za-z0-9+/]{43}=$/);
  t.ok(isAccepted(before, during, body));
  t.ok(isAccepted(after, during, body));
  t.notOk(isAccepted(generateWebhookSecret(), during, body));
  const ended = { ...signDelivery([after], sent) };
  t.notOk(isAccepted(before, ended, body));
  t.ok(isAccepted(after, ended, body));
});

t.test('any delivery is accepted unchanged, and rejected with one byte changed', async (t) => {
  const anyBody = fc.json({ maxDepth: 3 });
  t.doesNotThrow(() =>
    fc.assert(
      fc.property(anyBody, fc.nat(), fc.integer({ min: 1, max: 3 }), (body, at, count) => {
        const secrets = Array.from({ length: count }, generateWebhookSecret);
        const sent = delivery(body);
        const headers = { ...signDelivery(secrets, sent) };
        const bytes = Buffer.from(body);
        const place = at % bytes.length;
        const changed = Buffer.from(bytes);
        changed.writeUInt8((changed.readUInt8(place) & 0x7f) ^ 1, place);
        return secrets.every((secret) => isAccepted(secret, headers, bytes) && !isAccepted(secret, headers, changed));
      }),
      { numRuns: 300 },
    ),
  );
});
