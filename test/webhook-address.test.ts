import { Problem } from '../src/domain/errors.ts';
import { DeliveryFailed } from '../src/webhooks/delivery-failed.ts';
import { listenEverywhere, listenHttp } from './support/listeners.ts';
import { eventually } from './support/process.ts';
import { t } from './support/tap.ts';
import { failureOf, startWebhookClient } from './support/webhook-client.ts';

// No spelling, name or reply leads a webhook delivery to an address that is not public.

/** Spellings that lead to this machine, as an unguarded client shows below. */
const ownSpellings = [
  '127.0.0.1',
  '127.1',
  '127.0.1',
  '2130706433',
  '0x7f000001',
  '0X7F000001',
  '017700000001',
  '0177.0.0.1',
  '0177.0.0.01',
  '00000177.0.0.1',
  '0x7f.0.0.1',
  '0x7f.1',
  '0x7f.0x0.0x0.0x1',
  '127.0x0.0.01',
  '127.0.0.1.',
  '127.1.',
  '0x7f000001.',
  '%31%32%37.0.0.1',
  '127%2e0%2e0%2e1',
  '１２７.０.０.１',
  '①②⑦.⓪.⓪.①',
  '127。0。0。1',
  '127．0．0．1',
  '127｡1',
  '１２７．１',
  '0.0.0.0',
  '0',
  '0x0',
  '00',
  '0.0',
];

const ownIpv6Spellings = [
  '[::1]',
  '[0:0:0:0:0:0:0:1]',
  '[0000:0000:0000:0000:0000:0000:0000:0001]',
  '[::0.0.0.1]',
  '[::]',
];

const mapped = ['[::ffff:127.0.0.1]', '[::ffff:7f00:1]', '[0:0:0:0:0:FFFF:7F00:0001]', '[0::ffff:127.0.0.1]'];

/** Spellings of other or invalid places, to which nothing may be sent. */
const otherSpellings = [
  '127.0.0.2',
  '127.255.255.254',
  '10.0.0.1',
  '167772161',
  '012.0.0.1',
  '172.16.0.1',
  '172.31.255.255',
  '192.168.1.1',
  '0xc0a80101',
  '100.64.0.1',
  '100.100.100.200',
  '169.254.169.254',
  '0xa9fea9fe',
  '2852039166',
  '0251.0376.0251.0376',
  '168.63.129.16',
  '192.0.0.192',
  '192.0.2.1',
  '192.88.99.1',
  '198.18.0.1',
  '198.51.100.1',
  '203.0.113.1',
  '224.0.0.1',
  '240.0.0.1',
  '255.255.255.255',
  '0.1.2.3',
  '[::7f00:1]',
  '[::127.0.0.1]',
  '[::ffff:0:127.0.0.1]',
  '[::ffff:10.0.0.1]',
  '[::ffff:169.254.169.254]',
  '[::ffff:8.8.8.8]',
  '[64:ff9b::7f00:1]',
  '[64:ff9b::169.254.169.254]',
  '[64:ff9b:1::127.0.0.1]',
  '[2002:7f00:1::]',
  '[2002:7f00:1::1]',
  '[2001:0:4136:e378:8000:63bf:80ff:fffe]',
  '[2001::1]',
  '[100::1]',
  '[100:0:0:1::1]',
  '[fe80::1]',
  '[fec0::1]',
  '[fc00::1]',
  '[fd00:ec2::254]',
  '[fd20:ce::254]',
  '[ff02::1]',
  '[2001:db8::1]',
  '[2001:2::1]',
  '[2001:10::1]',
  '[2001:20::1]',
  '[3fff::1]',
  '[5f00::1]',
  '[4000::1]',
  '[fe80::1%25eth0]',
  '[fe80::1%eth0]',
  '[::1%25lo]',
  'localhost',
  'LOCALHOST',
  'localhost.',
  'ｌｏｃａｌｈｏｓｔ',
  'loc%61lhost',
  'any.localhost',
  'any.localhost.',
];

t.test('no spelling of a non-public address is called', async (t) => {
  const spellings = [...ownSpellings, ...ownIpv6Spellings, ...mapped, ...otherSpellings];
  t.ok(new Set(spellings).size >= 60, `${spellings.length} spellings`);
  const listener = await listenEverywhere(t);
  const { checkUrl, post } = startWebhookClient(t, {
    lookup: () => Promise.reject(new Error('No name is looked up here.')),
  });
  for (const spelling of spellings) {
    for (const scheme of ['http', 'https']) {
      const url = `${scheme}://${spelling}:${listener.port}/hook`;
      const isUrl = URL.canParse(url) && !spelling.endsWith('localhost.');
      const reason = isUrl ? 'address_refused' : 'url_refused';
      t.match(await failureOf(post(url, {}, '{}')), { reason }, `${url} is not called`);
      const refusal = { code: 'validation_failed', errors: [{ path: 'body.url', message: /^must / }] };
      await t.rejects(checkUrl(url), refusal, 'the name cannot be registered');
    }
  }
  t.equal(listener.connections(), 0, 'no connection was made');

  await t.test('an unguarded client connects, so the listener was reachable', async (t) => {
    const { post } = startWebhookClient(t, { opened: ['0.0.0.0/0', '::/0'] });
    for (const spelling of ownSpellings) {
      const before = listener.connections();
      t.match(await post(`http://${spelling}:${listener.port}/`, {}, ''), { status: 204 });
      t.equal(listener.connections(), before + 1, spelling);
    }
  });
});

t.test('a name with a non-public address is neither called nor registered', async (t) => {
  const listener = await listenEverywhere(t);
  const url = `http://hook.example.com:${listener.port}/`;
  const answers = [
    ['127.0.0.1'],
    ['::1'],
    ['::ffff:127.0.0.1'],
    ['0.0.0.0'],
    ['93.184.215.14', '127.0.0.1'],
    ['127.0.0.1', '93.184.215.14'],
    ['93.184.215.14', '2606:4700:4700::1111', 'fe80::1'],
    ['93.184.215.14', '::7f00:1'],
    ['fe80::1%lo'],
    ['2606:4700:4700::1111%lo'],
    ['127.1'],
    ['0177.0.0.1'],
    ['localhost'],
    [''],
  ];
  for (const answer of answers) {
    const { checkUrl, post } = startWebhookClient(t, { lookup: async () => answer });
    t.match(await failureOf(post(url, {}, '{}')), { reason: 'address_refused' }, `${answer} is not called`);
    await t.rejects(
      checkUrl(url),
      { code: 'validation_failed', errors: [{ path: 'body.url' }] },
      'the name cannot be registered',
    );
  }
  t.equal(listener.connections(), 0, 'no connection was made');
});

t.test('a name that changes its address after the registration is not followed', async (t) => {
  const listener = await listenEverywhere(t);
  const url = `http://hook.example.com:${listener.port}/`;
  const answers = [['93.184.215.14'], ['127.0.0.1'], ['127.0.0.1', '93.184.215.14']];
  const lookups: string[] = [];
  const { checkUrl, post } = startWebhookClient(t, {
    lookup: async (name) => {
      lookups.push(name);
      return answers.shift() ?? [];
    },
  });
  await checkUrl(url);
  t.match(await failureOf(post(url, {}, '{}')), { reason: 'address_refused' });
  t.match(await failureOf(post(url, {}, '{}')), { reason: 'address_refused' });
  t.same(lookups, ['hook.example.com', 'hook.example.com', 'hook.example.com']);
  t.equal(listener.connections(), 0);
});

t.test('the checked address is the one that is connected to', async (t) => {
  const receiver = await listenHttp(t);
  const answers = [['127.0.0.1'], ['192.168.0.1']];
  const { post } = startWebhookClient(t, {
    opened: ['127.0.0.1'],
    lookup: async () => answers.shift() ?? [],
  });
  t.match(await post(`http://hook.example.com:${receiver.port}/`, {}, '{}'), { status: 204 });
  t.equal(answers.length, 1, 'the name was looked up once');
  t.equal(receiver.arrived[0]?.headers.host, `hook.example.com:${receiver.port}`, 'the host stays the name');
});

t.test('a connection to another address than the URL names is closed before any data is sent', async (t) => {
  const receiver = await listenHttp(t);
  const { post } = startWebhookClient(t, { opened: ['0.0.0.0'] });
  t.match(await failureOf(post(`http://0.0.0.0:${receiver.port}/`, {}, '{}')), { reason: 'address_refused' });
  await eventually(async () => receiver.connections() === 1 && receiver.open() === 0);
  t.same(receiver.arrived, []);
});

t.test('a redirect counts as the reply, and is not followed', async (t) => {
  const redirectTarget = await listenEverywhere(t);
  const { post } = startWebhookClient(t, { opened: ['127.0.0.1'] });
  for (const status of [300, 301, 302, 303, 307, 308]) {
    const receiver = await listenHttp(t, (response) => {
      const location = `http://127.0.0.1:${redirectTarget.port}/`;
      response.writeHead(status, { location, refresh: `0; url=${location}` }).end();
    });
    t.match(await post(`http://127.0.0.1:${receiver.port}/`, {}, '{}'), { status });
    t.equal(receiver.arrived.length, 1);
  }
  t.equal(redirectTarget.connections(), 0);
});

t.test('a rejection does not reveal the address', async (t) => {
  const { checkUrl, post } = startWebhookClient(t, { lookup: async () => ['10.20.30.40'] });
  const refused = await post('http://hook.example.com/', {}, '{}').catch((error) => error);
  t.ok(refused instanceof DeliveryFailed);
  t.notMatch(refused.message, '10.20');
  const internal = await checkUrl('http://hook.example.com/').catch((error) => error);
  const { checkUrl: checkUnknown } = startWebhookClient(t, { lookup: () => Promise.reject(new Error('ENOTFOUND')) });
  const unknown = await checkUnknown('http://hook.example.com/').catch((error) => error);
  t.ok(internal instanceof Problem);
  t.same(internal.errors, unknown.errors, 'a name of the internal network looks like an unknown name');
  const literal = await checkUrl('http://10.20.30.40/').catch((error) => error);
  t.match(literal, { message: 'body.url: must lead to a public address' }, 'an address in the URL is named');
});
