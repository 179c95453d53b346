import { createCipheriv, createDecipheriv, createHmac, createSecretKey, hkdfSync } from 'node:crypto';
import { inspect } from 'node:util';
import { crc32 } from 'node:zlib';
import argon2 from 'argon2';
import fc from 'fast-check';
import type { Test } from 'tap';
import { createAttemptLimit } from '../src/crypto/attempt-limit.ts';
import { generateKeyring, parseKeyring } from '../src/crypto/keyring.ts';
import { type SealBinding, seal, unseal } from '../src/crypto/seal.ts';
import { Secret } from '../src/crypto/secret.ts';
import { createSecretHasher } from '../src/crypto/secret-hash.ts';
import { tagMatches, tagOf } from '../src/crypto/tag.ts';
import { mintToken, parseToken, type TokenKind } from '../src/crypto/token.ts';
import { idFromBytes, idSuffix, isId, newId } from '../src/domain/ids.ts';
import { toCanonical } from '../src/history/chain.ts';
import { t } from './support/tap.ts';

const hex = (text: string) => Buffer.from(text.replaceAll(' ', ''), 'hex');
const keyring = parseKeyring(generateKeyring(new Date()));

t.test('published vectors', async (t) => {
  await t.test('HMAC-SHA-256: RFC 4231, test case 1, through the tag', async (t) => {
    const entry = { ...keyring.primary, tagKey: createSecretKey(Buffer.alloc(20, 0x0b)) };
    const expected = 'b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7';
    t.equal(tagOf(entry, new Secret('Hi There')).toString('hex'), expected);
    t.ok(tagMatches(entry, new Secret('Hi There'), hex(expected)));
    t.notOk(tagMatches(entry, new Secret('Hi There.'), hex(expected)));
  });

  await t.test('HKDF-SHA-256: RFC 5869, test cases 1 and 3', async (t) => {
    const input = Buffer.alloc(22, 0x0b);
    const one = hkdfSync('sha256', input, hex('000102030405060708090a0b0c'), hex('f0f1f2f3f4f5f6f7f8f9'), 42);
    t.equal(
      Buffer.from(one).toString('hex'),
      '3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865',
    );
    const three = hkdfSync('sha256', input, '', '', 42);
    t.equal(
      Buffer.from(three).toString('hex'),
      '8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d201395faa4b61a96c8',
    );
  });

  await t.test('AES-256-GCM: test case 16 of the specification that NIST took over', async (t) => {
    const key = hex('feffe9928665731c6d6a8f9467308308feffe9928665731c6d6a8f9467308308');
    const cipher = createCipheriv('aes-256-gcm', key, hex('cafebabefacedbaddecaf888'));
    cipher.setAAD(hex('feedfacedeadbeeffeedfacedeadbeefabaddad2'));
    const plaintext = hex(
      'd9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a721c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b39',
    );
    t.equal(
      Buffer.concat([cipher.update(plaintext), cipher.final()]).toString('hex'),
      '522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa8cb08e48590dbb3da7b08b1056828838c5f61e6393ba7a0abcc9f662',
    );
    t.equal(cipher.getAuthTag().toString('hex'), '76fc6ece0f4e1768cddf8853bb2d551b');
  });

  await t.test('argon2id: RFC 9106, section 5.3', async (t) => {
    const raw = await argon2.hash(Buffer.alloc(32, 1), {
      type: argon2.argon2id,
      memoryCost: 32,
      timeCost: 3,
      parallelism: 4,
      salt: Buffer.alloc(16, 2),
      secret: Buffer.alloc(8, 3),
      associatedData: Buffer.alloc(12, 4),
      hashLength: 32,
      raw: true,
    });
    t.equal(raw.toString('hex'), '0d640df58d78766c08c037a34a8b53c9d01ef0452d75b65eb52520e96b01e659');
  });

  await t.test('CRC-32: the check value of the catalogue', async (t) => {
    t.equal(crc32('123456789'), 0xcbf43926);
  });

  await t.test('TypeID 0.3: its example', async (t) => {
    t.equal(idFromBytes('key', hex('01890a5dac96774bbcceb302099a8057')), 'key_01h455vb4pex5vsknk084sn02q');
    t.equal(idFromBytes('key', Buffer.alloc(16, 0xff)), `key_7${'z'.repeat(25)}`);
    t.notOk(isId('key', `key_8${'z'.repeat(25)}`), 'over 128 bits');
  });

  await t.test('RFC 8785: its example', async (t) => {
    const example = JSON.parse(
      String.raw`{"numbers":[333333333.33333329,1E30,4.50,2e-3,0.000000000000000000000000001],"string":"\u20ac$\u000F\u000aA'\u0042\u0022\u005c\\\"\/","literals":[null,true,false]}`,
    );
    t.equal(
      toCanonical(example),
      String.raw`{"literals":[null,true,false],"numbers":[333333333.3333333,1e+30,4.5,0.002,1e-27],"string":"€$\u000f\nA'B\"\\\\\"/"}`,
    );
  });
});

t.test('the keyring', async (t) => {
  const one = Buffer.alloc(32, 1).toString('base64');
  const two = Buffer.alloc(32, 2).toString('base64');

  await t.test('the keyring derives its keys by HKDF-SHA-256 under separate labels', async (t) => {
    const { primary, get } = parseKeyring(` new:${one}, old:${two}\n`);
    t.equal(primary.id, 'new');
    t.ok(get('old'));
    // RFC 5869 by hand: extract with 32 zero bytes of salt, expand once.
    const extracted = createHmac('sha256', Buffer.alloc(32)).update(Buffer.alloc(32, 1)).digest();
    const expand = (label: string) =>
      createHmac('sha256', extracted).update(`latchkey/v1/${label}`).update(Buffer.of(1)).digest('hex');
    t.equal(primary.tagKey.export().toString('hex'), expand('tag'));
    t.equal(primary.sealKey.export().toString('hex'), expand('seal'));
    t.equal(primary.signSeed.export().toString('hex'), expand('sign'));
    t.equal(primary.checkValue.toString('hex'), expand('check'));
  });

  await t.test('an invalid keyring is rejected, and the error does not repeat it', async (t) => {
    for (const text of ['', 'x', `:${one}`, `A:${one}`, 'a:c2hvcnQ=', `a:${one},a:${two}`, `a:${one}!`, `a:${one},`]) {
      t.throws(() => parseKeyring(text), { name: 'KeyringError' }, JSON.stringify(text.replaceAll(one, '…')));
      try {
        parseKeyring(text);
      } catch (error) {
        t.notOk(String(error).includes(one));
      }
    }
  });
});

const kinds: TokenKind[] = ['k', 'a', 'v', 'o'];
/** Checks a property as one assertion; fast-check throws the counterexample. */
function holds(t: Test, property: () => void): void {
  t.doesNotThrow(property);
}

const anyKind = fc.constantFrom(...kinds);

t.test('tokens', async (t) => {
  await t.test('tokens have the documented form and can be parsed', async (t) => {
    holds(t, () =>
      fc.assert(
        fc.property(anyKind, fc.stringMatching(/^[a-z][a-z0-9]{1,9}$/), (kind, prefix) => {
          const suffix = idSuffix(newId('key'));
          const token = mintToken({ prefix, kind, idSuffix: suffix }).reveal();
          const form = new RegExp(`^${prefix}_${kind}_[0-7][0-9a-hjkmnp-tv-z]{25}_[0-9A-Za-z]{43}[0-9A-Za-z]{6}$`);
          const parsed = parseToken(token, prefix);
          return form.test(token) && parsed?.kind === kind && parsed.idSuffix === suffix;
        }),
      ),
    );
  });

  await t.test('a token with one character changed, added or removed is malformed', async (t) => {
    const token = mintToken({ prefix: 'lk', kind: 'k', idSuffix: idSuffix(newId('key')) }).reveal();
    holds(t, () =>
      fc.assert(
        fc.property(
          fc.nat(token.length - 1),
          fc.string({ minLength: 1, maxLength: 1, unit: 'binary' }),
          (position, other) => {
            const changed = token.slice(0, position) + other + token.slice(position + 1);
            const added = token.slice(0, position) + other + token.slice(position);
            const cut = token.slice(0, position) + token.slice(position + 1);
            return [changed, added, cut].every((text) => text === token || parseToken(text, 'lk') === undefined);
          },
        ),
        { numRuns: 2_000 },
      ),
    );
    t.equal(parseToken(token, 'other'), undefined);
  });

  await t.test('tokens are unique', async (t) => {
    const suffix = idSuffix(newId('key'));
    const minted = Array.from({ length: 1_000 }, () =>
      mintToken({ prefix: 'lk', kind: 'k', idSuffix: suffix }).reveal(),
    );
    t.equal(new Set(minted).size, 1_000);
  });
});

t.test('sealing', async (t) => {
  const binding: SealBinding = { purpose: 'api_key', organizationId: 'org_a', recordId: 'key_a' };

  await t.test('a sealed value can only be opened with its keyring and binding', async (t) => {
    holds(t, () =>
      fc.assert(
        fc.property(fc.string({ unit: 'grapheme' }), (text) => {
          const { keyringId, sealed } = seal(keyring, new Secret(text), binding);
          return unseal(keyring, { keyringId, sealed }, binding).reveal() === text;
        }),
      ),
    );
    const { keyringId, sealed } = seal(keyring, new Secret('text'), binding);
    for (const other of [
      { ...binding, organizationId: 'org_b' },
      { ...binding, recordId: 'key_b' },
      { ...binding, organizationId: 'org_akey', recordId: '_a' },
    ]) {
      t.throws(() => unseal(keyring, { keyringId, sealed }, other), { name: 'SealBroken', reason: 'not_authentic' });
    }
    t.throws(() => unseal(keyring, { keyringId: 'gone', sealed }, binding), {
      name: 'SealBroken',
      reason: 'unknown_keyring_entry',
    });
  });

  await t.test('any flipped bit and any truncation is detected', async (t) => {
    const { keyringId, sealed } = seal(keyring, new Secret('lk_k_something'), binding);
    holds(t, () =>
      fc.assert(
        fc.property(fc.nat(sealed.length * 8 - 1), fc.nat(sealed.length - 1), (bit, length) => {
          const flipped = Buffer.from(sealed);
          flipped.writeUInt8(flipped.readUInt8(bit >> 3) ^ (1 << (bit & 7)), bit >> 3);
          return [flipped, sealed.subarray(0, length)].every((broken) => {
            try {
              unseal(keyring, { keyringId, sealed: broken }, binding);
              return false;
            } catch {
              return true;
            }
          });
        }),
      ),
    );
  });

  await t.test('sealing is AES-256-GCM with the documented layout and a new nonce each time', async (t) => {
    const [one, two] = [seal(keyring, new Secret('x'), binding), seal(keyring, new Secret('x'), binding)];
    t.not(one.sealed.subarray(0, 12).toString('hex'), two.sealed.subarray(0, 12).toString('hex'));
    const decipher = createDecipheriv('aes-256-gcm', keyring.primary.sealKey, one.sealed.subarray(0, 12));
    decipher.setAAD(Buffer.from('["latchkey/v1/seal","api_key","org_a","key_a"]'));
    decipher.setAuthTag(one.sealed.subarray(-16));
    t.equal(decipher.update(one.sealed.subarray(12, -16), undefined, 'utf8') + decipher.final('utf8'), 'x');
  });
});

t.test('argon2id', async (t) => {
  const cheap = { memoryKib: 8, timeCost: 1, parallelism: 1 };
  const secret = new Secret('a token');

  await t.test('argon2id matches only the right secret, with the configured costs', async (t) => {
    const hasher = createSecretHasher({ ...cheap, memoryKib: 16, concurrency: 1, queueLimit: 10 });
    const hash = await hasher.hash(secret);
    t.match(hash, /^\$argon2id\$v=19\$m=16,t=1,p=1\$/);
    t.equal(await hasher.verify(hash, secret), true);
    t.equal(await hasher.verify(hash, new Secret('another')), false);
  });

  await t.test('argon2id does not run for an invalid hash or one that would cost too much', async (t) => {
    const hasher = createSecretHasher({ ...cheap, concurrency: 1, queueLimit: 10 });
    const hash = await hasher.hash(secret);
    for (const planted of [
      hash.replace('m=8', 'm=65537'),
      hash.replace('t=1', 't=11'),
      hash.replace('p=1', 'p=5'),
      hash.replace('argon2id', 'argon2d'),
      hash.replace('m=8,', ''),
      hash.replace('m=8', 'm=8,m=99999999'),
      '',
    ]) {
      t.equal(await hasher.verify(planted, secret), false, planted.slice(0, 40));
    }
    t.equal(hasher.runs, 1);
  });

  await t.test('argon2id runs and queues up to its limits, and rejects more', async (t) => {
    const hasher = createSecretHasher({ ...cheap, concurrency: 2, queueLimit: 3 });
    const results = await Promise.allSettled(Array.from({ length: 9 }, () => hasher.hash(secret)));
    t.equal(results.filter(({ status }) => status === 'fulfilled').length, 5);
    for (const result of results) {
      if (result.status === 'rejected') t.match(result.reason, { code: 'overloaded', headers: { 'retry-after': '1' } });
    }
    t.equal(hasher.queued, 0);
    await hasher.hash(secret);
  });
});

t.test('attempts for one id: one at a time, and at most five failures a minute', async (t) => {
  let nowMs = 0;
  const limit = createAttemptLimit(() => nowMs, 2);
  const fail = () => limit.run('a', async () => false);
  let release = () => {};
  const running = limit.run('a', () => new Promise<boolean>((resolve) => (release = () => resolve(true))));
  await t.rejects(fail(), { code: 'overloaded', headers: { 'retry-after': '1' } });
  t.equal(await limit.run('b', async () => true), true, 'another id is not held up');
  release();
  t.equal(await running, true);
  for (let failure = 0; failure < 5; failure++) t.equal(await fail(), false);
  await t.rejects(fail(), { code: 'overloaded', headers: { 'retry-after': '60' } });
  nowMs = 60_000;
  t.equal(await fail(), false, 'a minute later it may be tried again');
});

t.test('the minute of failed attempts does not depend on the wall clock', async (t) => {
  const limit = createAttemptLimit();
  for (let failure = 0; failure < 5; failure++) await limit.run('a', async () => false);
  const wallClock = Date.now;
  t.teardown(() => {
    Date.now = wallClock;
  });
  Date.now = () => wallClock() + 18_000_000;
  await t.rejects(
    limit.run('a', async () => false),
    { code: 'overloaded' },
  );
});

t.test('a secret is not printed by accident', async (t) => {
  const secret = new Secret('lk_k_plaintext');
  for (const printed of [
    String(secret),
    `${secret}`,
    JSON.stringify({ secret }),
    inspect(secret),
    inspect({ deep: { secret } }, { showHidden: true, depth: 9 }),
    Object.values(secret).join(),
    JSON.stringify(structuredClone(secret)),
  ]) {
    t.notMatch(printed, 'plaintext');
  }
});
