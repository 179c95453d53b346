import { findUnreadable, withoutUnreadable } from '../src/lib/readable-text.ts';
import { type Json, startService } from './support/app.ts';
import { t } from './support/tap.ts';

const deceptive: Record<string, string> = {
  'U+202E': 'pay\u202exe.elif',
  'U+202A': '\u202aabc\u202c',
  'U+2066': 'a\u2066b\u2069',
  'U+200B': 'Ad\u200bmin',
  'U+200D': 'Ad\u200dmin',
  'U+200C': 'Ad\u200cmin',
  'U+200F': 'Admin\u200f.',
  'U+FEFF': 'Ad\ufeffmin',
  'U+2060': 'Ad\u2060min',
  'U+2063': 'Ad\u2063min',
  'U+00AD': 'Ad\u00admin',
  'U+061C': 'Ad\u061cmin',
  'U+034F': 'Ad\u034fmin',
  'U+3164': 'Ad\u3164min',
  'U+2800': 'Ad\u2800min',
  'U+E0041': 'Ad\u{e0041}min',
  'U+FE0F': 'Ad\ufe0fmin',
  'U+0007': 'Ad\u0007min',
  'U+000A': 'Ad\nmin',
  'U+0085': 'Ad\u0085min',
  'U+2028': 'Ad\u2028min',
};

const readable = [
  'Ünïcödé & Söhne GmbH',
  'می‌خواهم',
  'क्‍ष',
  'שלום עולם',
  '山田　太郎',
  '한국어',
  '👩🏽‍💻 Dev ❤️ 3️⃣',
  '٠؀١',
];

t.test('invisible and misleading characters are found; characters that scripts need are accepted', async (t) => {
  for (const [codePoint, text] of Object.entries(deceptive)) {
    t.equal(findUnreadable(text), codePoint);
    t.equal(findUnreadable(withoutUnreadable(text)), undefined, codePoint);
  }
  for (const text of readable) {
    t.equal(findUnreadable(text), undefined, text);
    t.equal(withoutUnreadable(text), text);
  }
});

t.test('every stored name, reason, note, description and address must be readable', async (t) => {
  const service = await startService(t);
  const { admin, operator, organizationId } = service;
  const { body: key } = await admin.post('/v1/keys', {});
  const { body: deletedKey } = await admin.post('/v1/keys', {});
  await admin.delete(`/v1/keys/${deletedKey.id}`);
  const { body: recovery } = await admin.post('/v1/recovery-requests', {
    keyId: deletedKey.id,
    details: 'first\r\nsecond\nthird',
  });
  t.equal(recovery.details, 'first\r\nsecond\nthird', 'details may have several lines');
  const token = { role: 'admin', email: 'b@example.com', scopes: ['read'] };
  const hook = { url: 'http://127.0.0.1:9/', events: ['*'] };
  const members: [path: string, member: string, rest: Json][] = [
    ['/v1/keys', 'name', {}],
    ['/v1/partners', 'name', { email: 'c@example.com', permissions: ['read'] }],
    ['/v1/partners', 'email', { permissions: ['read'] }],
    ['/v1/partners', 'externalId', { email: 'd@example.com', permissions: ['read'] }],
    ['/v1/access-tokens', 'name', token],
    ['/v1/access-tokens', 'email', { ...token, name: 'Bob' }],
    ['/v1/webhooks', 'description', hook],
    ['/v1/webhooks', 'url', { events: ['*'] }],
    [`/v1/keys/${key.id}/reveal`, 'reason', {}],
    [`/v1/keys/${key.id}/reveal`, 'recipient', {}],
    ['/v1/recovery-requests', 'details', { keyId: deletedKey.id }],
  ];
  const rejected = async (reply: { status: number; body: Json }, member: string, codePoint: string) => {
    const { status, body } = reply;
    t.match({ status, code: body.code }, { status: 400, code: 'validation_failed' }, `${member} ${codePoint}`);
    const errors = body.errors.filter(({ path }: Json) => path === `body.${member}`);
    t.match(
      errors.map(({ message }: Json) => message).join(),
      `must not contain ${codePoint},`,
      `${member} ${codePoint}`,
    );
  };
  for (const [path, member, rest] of members) {
    for (const [codePoint, text] of Object.entries(deceptive)) {
      if (member === 'details' && codePoint === 'U+000A') continue;
      const value = { email: `${text}@example.com`, url: `https://example.com/${text}` }[member] ?? text;
      await rejected(await admin.post(path, { ...rest, [member]: value }), member, codePoint);
    }
  }
  const deceptiveName = 'x\u202ey';
  await rejected(await admin.patch(`/v1/keys/${key.id}`, { name: deceptiveName }), 'name', 'U+202E');
  await rejected(await admin.patch('/v1/organization', { name: deceptiveName }), 'name', 'U+202E');
  await rejected(await operator.post('/v1/organizations', { name: deceptiveName }), 'name', 'U+202E');
  const named = { 'latchkey-organization': organizationId };
  const note = await operator.post(`/v1/recovery-requests/${recovery.id}/decline`, { note: deceptiveName }, named);
  await rejected(note, 'note', 'U+202E');
});

t.test('e-mail addresses contain no white space of any kind', async (t) => {
  const { admin } = await startService(t);
  for (const space of [' ', '\u00a0', '\u2003', '\u3000', '\u202f', '\t']) {
    for (const email of [`a${space}b@example.com`, `a@example.com${space}`, `a@exam${space}ple.com`]) {
      const { status, body } = await admin.post('/v1/partners', { email, permissions: ['read'] });
      t.match({ status, ...body }, { status: 400, errors: [{ path: 'body.email' }] }, JSON.stringify(email));
    }
  }
});

t.test('names are stored in NFC, so that equal-looking names are equal', async (t) => {
  const { admin } = await startService(t);
  for (const name of readable) {
    const { status, body } = await admin.post('/v1/partners', {
      email: `p${readable.indexOf(name)}@example.com`,
      permissions: ['read'],
      name: name.normalize('NFD'),
    });
    t.match({ status, name: body.name }, { status: 201, name: name.normalize('NFC') });
  }
});
