import { randomUUID } from 'node:crypto';
import fc from 'fast-check';
import { Webhook as StandardWebhook } from 'standardwebhooks';
import { Webhook as SvixWebhook } from 'svix';
import { Secret } from '../src/crypto/secret.ts';
import { generateWebhookSecret, type SignedDelivery, signDelivery } from '../src/webhooks/signature.ts';
import { listenHttp } from './support/listeners.ts';
import { t } from './support/tap.ts';
import { startWebhookClient } from './support/webhook-client.ts';

// Signatures as others check them: the libraries that receivers use are the judges here.

const now = () => Math.floor(Date.now() / 1000);

/** Whether both libraries accept a delivery (raw bytes) with this secret. They must agree. */
function isTaken(secret: Secret, headers: Record<string, string>, body: Buffer): boolean {
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

t.test('the specification’s example is signed as it says', async (t) => {
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

t.test('what arrives is taken by receivers on its raw bytes, and nothing else is', async (t) => {
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
  t.ok(isTaken(secret, headers, arrived.body));
  t.notOk(isTaken(generateWebhookSecret(), headers, arrived.body), 'another secret');
  t.notOk(isTaken(secret, headers, Buffer.concat([arrived.body, Buffer.from(' ')])), 'another body');
  t.notOk(isTaken(secret, { ...headers, 'webhook-id': 'msg_other' }, arrived.body), 'another id');
  const other = String(sent.timestampSeconds + 1);
  t.notOk(isTaken(secret, { ...headers, 'webhook-timestamp': other }, arrived.body), 'another time');
  const old = signDelivery([secret], { ...sent, timestampSeconds: now() - 301 });
  t.notOk(isTaken(secret, { ...old }, arrived.body), 'signed too long ago');
});

t.test('during a rotation who knows either secret takes it; after it, who knows the new one', async (t) => {
  const [before, after] = [generateWebhookSecret(), generateWebhookSecret()];
  const sent = delivery('{"type":"key.deleted"}');
  const body = Buffer.from(sent.body);
  const during = { ...signDelivery([after, before], sent) };
  t.match(during['webhook-signature'], /^v1,[A-Za-z0-9+/]{43}= v1,[A-Za-z0-9+/]{43}=$/);
  t.ok(isTaken(before, during, body));
  t.ok(isTaken(after, during, body));
  t.notOk(isTaken(generateWebhookSecret(), during, body));
  const ended = { ...signDelivery([after], sent) };
  t.notOk(isTaken(before, ended, body));
  t.ok(isTaken(after, ended, body));
});

t.test('whatever is sent is taken as it is, and not with one byte changed', async (t) => {
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
        return secrets.every((secret) => isTaken(secret, headers, bytes) && !isTaken(secret, headers, changed));
      }),
      { numRuns: 300 },
    ),
  );
});
