import type { Test } from 'tap';
import { createCertificateAuthority } from './support/certificates.ts';
import { type HttpListener, listenHttp, listenHttps } from './support/listeners.ts';
import { eventually } from './support/process.ts';
import { t } from './support/tap.ts';
import { failureOf, startWebhookClient } from './support/webhook-client.ts';

// Deliveries over TLS are only sent to a server whose certificate is valid for the host.

const authority = createCertificateAuthority();
const name = 'hook.example.com';

const options = { allowHttp: false, opened: ['127.0.0.1'], lookup: async () => ['127.0.0.1'] };
const client = (t: Test) => startWebhookClient(t, { ...options, ca: authority.certificate });

const expectRefused = async (t: Test, receiver: HttpListener, url: string, { post } = client(t)) => {
  t.match(await failureOf(post(url, {}, '{"a":1}')), { reason: 'tls_failed' }, url);
  await eventually(async () => receiver.open() === 0);
  t.same(receiver.arrived, [], 'nothing was sent');
};

t.test('a receiver with a valid certificate is reached by its name', async (t) => {
  const receiver = await listenHttps(t, authority.issue([name]));
  const { post } = client(t);
  t.match(await post(`https://${name}:${receiver.port}/hook`, { 'webhook-id': 'msg_1' }, '{"a":1}'), { status: 204 });
  const { href } = new URL(`https://HOOK.Example.com:${receiver.port}/again`);
  t.match(await post(href, {}, '{"a":1}'), { status: 204 });
  t.match(receiver.arrived[0], {
    method: 'POST',
    url: '/hook',
    headers: { host: `${name}:${receiver.port}`, 'webhook-id': 'msg_1' },
    body: Buffer.from('{"a":1}'),
  });
});

t.test('the TLS handshake names the host of the URL', async (t) => {
  const receiver = await listenHttps(t, authority.issue(['*.example.com']));
  const { post } = client(t);
  await post(`https://a.example.com:${receiver.port}/`, {}, '{}');
  t.equal(receiver.arrived[0]?.servername, 'a.example.com');
});

t.test('a receiver is reached by its address if the certificate names the address', async (t) => {
  const receiver = await listenHttps(t, authority.issue(['127.0.0.1']));
  t.match(await client(t).post(`https://127.0.0.1:${receiver.port}/`, {}, '{}'), { status: 204 });
  const named = await listenHttps(t, authority.issue([name]));
  await expectRefused(t, named, `https://127.0.0.1:${named.port}/`);
});

t.test('a certificate for another name, of another authority or another time is rejected', async (t) => {
  const good = await listenHttps(t, authority.issue([name]));
  await expectRefused(t, good, `https://other.example.com:${good.port}/`);
  await expectRefused(t, good, `https://sub.${name}:${good.port}/`);
  const unknownAuthority = await listenHttps(t, createCertificateAuthority().issue([name]));
  await expectRefused(t, unknownAuthority, `https://${name}:${unknownAuthority.port}/`);
  await expectRefused(t, good, `https://${name}:${good.port}/`, startWebhookClient(t, options));
  const day = 86_400_000;
  const past = { from: new Date(Date.now() - 2 * day), until: new Date(Date.now() - day) };
  const future = { from: new Date(Date.now() + day), until: new Date(Date.now() + 2 * day) };
  for (const validity of [past, future]) {
    const receiver = await listenHttps(t, authority.issue([name], validity));
    await expectRefused(t, receiver, `https://${name}:${receiver.port}/`);
  }
});

t.test('the environment cannot disable the certificate check', async (t) => {
  const variable = 'NODE_TLS_REJECT_UNAUTHORIZED';
  const before = process.env[variable];
  t.teardown(() => {
    if (before === undefined) delete process.env[variable];
    else process.env[variable] = before;
  });
  process.env[variable] = '0';
  const receiver = await listenHttps(t, authority.issue([name]));
  await expectRefused(t, receiver, `https://other.example.com:${receiver.port}/`);
});

t.test('a receiver without TLS is rejected', async (t) => {
  const plain = await listenHttp(t);
  await expectRefused(t, plain, `https://${name}:${plain.port}/`);
});
