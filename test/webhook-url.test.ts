import { BlockList } from 'node:net';
import fc from 'fast-check';
import { isPublicAddress, parseRanges, requireSendableUrl } from '../src/webhooks/public-address.ts';
import { t } from './support/tap.ts';

const strict = { allowHttp: false };

t.test('an invalid URL is rejected with the reason', async (t) => {
  const refused: Array<[url: string, message: RegExp]> = [
    ['', /must be a URL/],
    ['hook.example.com', /must be a URL/],
    ['//hook.example.com/', /must be a URL/],
    ['https:hook.example.com', /must be a URL/],
    ['https:\\\\hook.example.com\\', /must be a URL/],
    ['https://hook.example.com\\@127.0.0.1/', /must be a URL/],
    [' https://hook.example.com/', /must be a URL/],
    ['https://hook.exa\tmple.com/', /must be a URL/],
    ['https://hook.example.com/\n', /must be a URL/],
    ['https://hook.example.com/\u0000', /must be a URL/],
    ['https://[::1/', /must be a URL/],
    ['https://256.1.1.1/', /must be a URL/],
    ['https://hook.example.com:70000/', /must be a URL/],
    ['http://hook.example.com/', /https/],
    ['ftp://hook.example.com/', /https/],
    ['file:///etc/passwd', /https/],
    ['javascript://hook.example.com/%0aalert(1)', /https/],
    ['unix://var/run/docker.sock', /https/],
    ['https://ada@hook.example.com/', /user/],
    ['https://ada:secret@hook.example.com/', /user/],
    ['https://:secret@hook.example.com/', /user/],
    ['https://hook.example.com/#part', /fragment/],
    ['https://hook.example.com/#', /fragment/],
    ['https://hook.example.com./', /dot/],
    [`https://hook.example.com/${'a'.repeat(2_048)}`, /2048/],
    [`https://hook.example.com/${'ü'.repeat(400)}`, /2048/],
  ];
  for (const [url, message] of refused) {
    t.throws(() => requireSendableUrl(url, strict), {
      code: 'validation_failed',
      errors: [{ path: 'body.url', message }],
    });
  }
  t.equal(
    requireSendableUrl('https://Bücher.example:443/a b'.replace(' ', '%20'), strict).href,
    'https://xn--bcher-kva.example/a%20b',
  );
  t.equal(requireSendableUrl('https://8.8.8.8/?a=b', strict).href, 'https://8.8.8.8/?a=b');
  t.equal(requireSendableUrl('http://hook.example.com/', { allowHttp: true }).protocol, 'http:');
});

t.test('an allowed network is reached, and no address outside it', async (t) => {
  const allowedRanges = parseRanges(['10.1.0.0/16', '127.0.0.1', 'fd00::/8', '::ffff:7f00:1/128']);
  for (const address of ['10.1.0.0', '10.1.255.255', '127.0.0.1', 'fd12::1', '::ffff:127.0.0.1', '8.8.8.8']) {
    t.ok(isPublicAddress(address, allowedRanges), address);
  }
  for (const address of ['10.0.255.255', '10.2.0.0', '127.0.0.2', 'fc00::1', '::ffff:10.1.0.1', 'fd12::1%lo', '10.1']) {
    t.notOk(isPublicAddress(address, allowedRanges), address);
  }
  for (const invalid of [
    '',
    '10.0.0.0/33',
    '::/129',
    '10.0.0/8',
    'example.com',
    '10.0.0.0/',
    '10.0.0.0/-1',
    'fe80::1%lo/64',
  ]) {
    t.throws(() => parseRanges([invalid]), RangeError, invalid);
  }
});

t.test("only addresses that IANA's registries call globally reachable count as public", async (t) => {
  const special = new BlockList();
  const ipv4 = ['0.0.0.0/8', '10.0.0.0/8', '100.64.0.0/10', '127.0.0.0/8', '168.63.129.16/32', '169.254.0.0/16'];
  ipv4.push('172.16.0.0/12', '192.0.0.0/24', '192.0.2.0/24', '192.31.196.0/24', '192.52.193.0/24', '192.88.99.0/24');
  ipv4.push('192.168.0.0/16', '192.175.48.0/24', '198.18.0.0/15', '198.51.100.0/24', '203.0.113.0/24', '224.0.0.0/3');
  const ipv6 = ['2001::/23', '2001:db8::/32', '2002::/16', '2620:4f:8000::/48', '3fff::/20'];
  for (const [family, networks] of [['ipv4', ipv4] as const, ['ipv6', ipv6] as const]) {
    for (const network of networks) {
      const [address = '', bits] = network.split('/');
      special.addSubnet(address, Number(bits), family);
    }
  }
  const boundaries = ipv4.flatMap((network) => {
    const [address = '', bits] = network.split('/');
    const first = address.split('.').reduce((value, part) => value * 256 + Number(part), 0);
    const last = first + 2 ** (32 - Number(bits)) - 1;
    return [first - 1, first, last, last + 1];
  });
  const toIpv4 = (value: number) => [24, 16, 8, 0].map((shift) => Math.floor(value / 2 ** shift) % 256).join('.');
  const anyIpv4 = fc.oneof(
    fc.nat(0xffffffff),
    fc.constantFrom(...boundaries.filter((edge) => edge >= 0 && edge <= 0xffffffff)),
  );
  const part = fc.oneof(fc.nat(0xffff), fc.constantFrom(0, 1, 2, 0x64, 0xffff, 0x7f00));
  const firstParts = fc.constantFrom(0, 0x64, 0x100, 0x1fff, 0x2000, 0x2001, 0x2002, 0x2620, 0x3fff, 0x4000, 0xfe80);
  const anyIpv6 = fc.tuple(fc.oneof(fc.nat(0xffff), firstParts), fc.array(part, { minLength: 7, maxLength: 7 }));

  t.doesNotThrow(() =>
    fc.assert(
      fc.property(anyIpv4, (value) => isPublicAddress(toIpv4(value), []) === !special.check(toIpv4(value), 'ipv4')),
      { numRuns: 5_000 },
    ),
  );
  t.doesNotThrow(() =>
    fc.assert(
      fc.property(anyIpv6, ([first, rest]) => {
        const address = [first, ...rest].map((value) => value.toString(16)).join(':');
        const isUnicast = first >= 0x2000 && first < 0x4000;
        return isPublicAddress(address, []) === (isUnicast && !special.check(address, 'ipv6'));
      }),
      { numRuns: 5_000 },
    ),
  );
});
