import { createSecretKey } from 'node:crypto';
import { exportSPKI, generateKeyPair, importJWK, type JWTPayload, SignJWT, UnsecuredJWT } from 'jose';
import type { Test } from 'tap';
import { startService } from './support/app.ts';
import { audience, type Issuer, oidcOf, startIssuer } from './support/issuer.ts';
import { t } from './support/tap.ts';

// Each token here is invalid in exactly one respect.

async function start(t: Test, options: Parameters<typeof oidcOf>[2] = {}, addressLimit = 1e6) {
  const issuer = await startIssuer(t);
  const limits = { callerLimit: 1e6, addressLimit, revealLimit: 1e6 };
  const organization = { claim: 'organization', ids: undefined };
  const service = await startService(t, { limits, oidc: oidcOf(issuer, organization, options) });
  const nowSeconds = Math.floor(Date.now() / 1_000);
  /** The claims of a person with all scopes. */
  const good = (changes: Record<string, unknown> = {}): JWTPayload => ({
    iss: issuer.url,
    aud: audience,
    sub: 'ada',
    iat: nowSeconds,
    nbf: nowSeconds,
    exp: nowSeconds + 600,
    scope: 'keys',
    organization: service.organizationId,
    roles: ['latchkey-read', 'latchkey-write', 'latchkey-reveal'],
    ...changes,
  });
  const list = (token: string) => service.as(token).get('/v1/keys');
  return { ...service, issuer, good, list, nowSeconds };
}

t.test('one wrong claim is enough for a rejection, which names the claim', async (t) => {
  const { issuer, good, list, nowSeconds } = await start(t);
  t.equal((await list(await issuer.sign(good()))).status, 200);
  t.equal((await list(await issuer.sign(good({ aud: ['https://other.example', audience] })))).status, 200);
  t.equal((await list(await issuer.sign(good(), { typ: 'application/at+jwt' }))).status, 200);
  t.equal((await list(await issuer.sign(good({ exp: nowSeconds - 5 })))).status, 200, 'clocks may differ by seconds');
  const now = nowSeconds;
  for (const times of [{ exp: now + 7_200 }, { iat: now - 80_000, nbf: now - 80_000 }, { nbf: undefined }]) {
    t.equal((await list(await issuer.sign(good(times)))).status, 200, JSON.stringify(times));
  }

  const claims: Array<[what: string, changes: Record<string, unknown>, detail: RegExp, code?: string]> = [
    ['another issuer', { iss: 'https://evil.example' }, /another issuer/],
    ['nearly this issuer', { iss: `${issuer.url}/` }, /another issuer/],
    ['no issuer', { iss: undefined }, /another issuer/],
    ['another audience', { aud: 'https://other.example' }, /another audience/],
    ['a longer audience', { aud: `${audience}.evil.example` }, /another audience/],
    ['no audience', { aud: undefined }, /has no aud/],
    ['expired', { iat: nowSeconds - 700, nbf: nowSeconds - 700, exp: nowSeconds - 30 }, /expired/, 'token_expired'],
    ['no expiry', { exp: undefined }, /has no exp/],
    ['an expiry that is no number', { exp: '9999999999' }, /wrong form/],
    ['not valid yet', { nbf: nowSeconds + 60 }, /not valid yet/],
    ['issued in the future', { iat: nowSeconds + 60, exp: nowSeconds + 600 }, /issued in the future/],
    ['no time of issue', { iat: undefined }, /has no iat/],
    ['a time of issue that is no number', { iat: 'now' }, /wrong form/],
    ['an expiry too far in the future', { exp: nowSeconds + 7_300 }, /more than 7200 seconds from now/],
    ['an expired token', { iat: nowSeconds - 3_700, exp: nowSeconds - 100 }, /expired/, 'token_expired'],
    ['no subject', { sub: undefined }, /has no sub/],
    ['an empty subject', { sub: '' }, /no subject/],
    ['a subject of two lines', { sub: 'a\nb' }, /no subject/],
    ['a long subject', { sub: 'a'.repeat(256) }, /no subject/],
    ['no role', { roles: undefined }, /no role/],
    ['another role', { roles: ['latchkey-readers'] }, /no role/],
    ['a role that is an object', { roles: { 'latchkey-read': true } }, /no role/],
    ['an ID token by its nonce', { nonce: 'n' }, /not an access token/],
    ['an ID token by its hash', { at_hash: 'h' }, /not an access token/],
    ["a provider's refresh token", { typ: 'Refresh' }, /not an access token/],
  ];
  for (const [what, changes, detail, code = 'unauthorized'] of claims) {
    const reply = await list(await issuer.sign(good(changes)));
    t.match(reply, { status: 401, body: { code, detail } }, what);
    t.match(reply.headers['www-authenticate'], /^Bearer realm="latchkey", error="invalid_token"/, what);
  }
});

t.test('an operator can require nbf, another maximum lifetime and the audience in another claim', async (t) => {
  const settings = { requiresNbf: true, maxLifetimeSeconds: 600, audienceClaim: 'client_id' };
  const { issuer, good, list, nowSeconds } = await start(t, { settings });
  const clientIdAudience = { aud: undefined, client_id: audience };
  t.equal((await list(await issuer.sign(good(clientIdAudience)))).status, 200);
  for (const [changes, detail] of [
    [{ nbf: undefined }, /has no nbf/],
    [{ exp: nowSeconds + 700 }, /more than 600 seconds/],
    [{ client_id: undefined, aud: audience }, /another audience/],
    [{ client_id: 'another' }, /another audience/],
  ] as const) {
    t.match(await list(await issuer.sign(good({ ...clientIdAudience, ...changes }))), {
      status: 401,
      body: { detail },
    });
  }
});

t.test('only tokens signed by the issuer with an accepted algorithm pass', async (t) => {
  const { issuer, good, list } = await start(t);
  const { kid, publicJwk } = issuer.signingKey();
  const header = { alg: 'RS256', typ: 'at+jwt', kid };
  const attacker = await generateKeyPair('RS256');
  const elliptic = await generateKeyPair('ES256');
  const publicKey = await importJWK(publicJwk, 'RS256', { extractable: true });
  const spki = await exportSPKI(publicKey as Parameters<typeof exportSPKI>[0]);
  const genuine = await issuer.sign(good());
  const [head = '', body = '', signature = ''] = genuine.split('.');
  const encode = (value: unknown) => Buffer.from(JSON.stringify(value)).toString('base64url');
  const sign = (key: Parameters<SignJWT['sign']>[0], protectedHeader: { alg: string; [name: string]: unknown }) =>
    new SignJWT(good()).setProtectedHeader(protectedHeader).sign(key);

  const tokens: Array<[what: string, token: string, detail: RegExp]> = [
    ['the algorithm none', new UnsecuredJWT(good()).encode(), /algorithm that is not accepted|well-formed/],
    ['RS256 without a signature', `${head}.${body}.`, /signature|well-formed/],
    ['the algorithm none with a signature', `${encode({ ...header, alg: 'none' })}.${body}.${signature}`, /algorithm/],
    [
      'signed with the public key, as HS256',
      await sign(createSecretKey(spki, 'utf8'), { ...header, alg: 'HS256' }),
      /algorithm/,
    ],
    [
      'signed with the public key as a JWK, as HS256',
      await sign(createSecretKey(JSON.stringify(publicJwk), 'utf8'), { ...header, alg: 'HS256' }),
      /algorithm/,
    ],
    ["a key of somebody else under the issuer's key id", await sign(attacker.privateKey, header), /signature/],
    [
      'a key of somebody else under another key id',
      await sign(attacker.privateKey, { ...header, kid: 'mallory' }),
      /does not publish/,
    ],
    [
      'a key of somebody else that is sent along',
      await sign(attacker.privateKey, {
        ...header,
        kid: 'mallory',
        jku: 'http://evil.example/jwks',
        jwk: { kty: 'RSA' },
      }),
      /does not publish/,
    ],
    ['another kind of key', await sign(elliptic.privateKey, { ...header, alg: 'ES256' }), /does not publish/],
    ['a token of the issuer that was changed', `${head}.${encode(good({ sub: 'root' }))}.${signature}`, /signature/],
    ['the issuer, but cut', genuine.slice(0, -4), /signature/],
  ];
  for (const [what, token, detail] of tokens) {
    t.match(await list(token), { status: 401, body: { detail } }, what);
  }
});

t.test('text that is not a token, and a token that is too long, are rejected', async (t) => {
  const { issuer, good, list } = await start(t);
  const huge = await issuer.sign(good({ groups: Array.from({ length: 600 }, (_, index) => `a group ${index}`) }));
  t.ok(huge.length > 8_192 && huge.length < 16_000);
  t.match(await list(huge), { status: 401, body: { detail: /longer than 8192/ } });
  const large = await issuer.sign(good({ groups: Array.from({ length: 300 }, (_, index) => `a group ${index}`) }));
  t.ok(large.length > 4_000 && large.length < 8_192);
  t.equal((await list(large)).status, 200);
  for (const token of [
    'a.b.c',
    'e30.e30.',
    'eyJhbGciOiJSUzI1NiJ9.W10.AAAA',
    'eyJhbGciOiJSUzI1NiJ9.bm90IGpzb24.AAAA',
    '-.-.-',
  ]) {
    t.match(await list(token), { status: 401, body: { code: /token_malformed|unauthorized/ } }, token);
  }
  for (const token of ['a.b', 'a.b.c.d', 'a.b.c.d.e', '..', 'ä.b.c']) {
    t.match(await list(token), { status: 401, body: { code: 'token_malformed' } }, token);
  }
});

t.test('ID tokens are rejected, whatever the settings', async (t) => {
  const login = async (issuer: Issuer, claims: Record<string, unknown>) => {
    issuer.people.set('ada', { roles: ['latchkey-read'], ...claims });
    return issuer.tokensOf('ada');
  };
  const strict = await start(t);
  const { idToken, accessToken } = await login(strict.issuer, { organization: strict.organizationId });
  t.match(await strict.list(idToken), { status: 401, body: { detail: /another audience/ } });
  t.equal((await strict.list(accessToken)).status, 200);
  const untyped = await strict.issuer.sign(strict.good(), { typ: 'JWT' });
  t.match(await strict.list(untyped), { status: 401, body: { detail: /not an access token/ } });

  // The audience is that of the client itself, as with an application that is client and API.
  const settings = { acceptsUntypedTokens: true, audience: 'dashboard' };
  const lenient = await start(t, { settings });
  const clientIdAudience = await login(lenient.issuer, { organization: lenient.organizationId });
  t.match(await lenient.list(clientIdAudience.idToken), { status: 401, body: { detail: /looks like an ID token/ } });
  const signWith = (changes: Record<string, unknown>, header: Record<string, unknown>) =>
    lenient.issuer.sign(lenient.good({ aud: 'dashboard', nbf: undefined, ...changes }), header);
  t.equal((await lenient.list(await signWith({}, { typ: 'JWT' }))).status, 200);
  t.equal((await lenient.list(await signWith({}, { typ: undefined }))).status, 200);
  t.equal((await lenient.list(await signWith({ scope: undefined, scp: ['keys'] }, { typ: 'JWT' }))).status, 200);
  t.equal((await lenient.list(await signWith({ scope: undefined }, { typ: 'at+jwt' }))).status, 200);
  for (const [changes, header] of [
    [{ scope: undefined }, { typ: 'JWT' }],
    [{ nonce: 'n' }, { typ: 'JWT' }],
    [{ typ: 'ID' }, { typ: 'JWT' }],
    [{ events: {} }, { typ: 'JWT' }],
    [{}, { typ: 'logout+jwt' }],
    [{}, { typ: 'dpop+jwt' }],
  ] as const) {
    t.match(await lenient.list(await signWith(changes, header)), {
      status: 401,
      body: { detail: /not an access token/ },
    });
  }
});

t.test('rejected JWTs count for their address like other credentials, valid ones do not', async (t) => {
  const { issuer, good, list, app } = await start(t, {}, 3);
  const bad = await issuer.sign(good({ aud: 'other' }));
  const token = await issuer.sign(good());
  for (let attempt = 0; attempt < 10; attempt++) t.equal((await list(token)).status, 200);
  for (let attempt = 0; attempt < 3; attempt++) t.equal((await list(bad)).status, 401);
  t.match(await list(bad), { status: 429, body: { code: 'rate_limited' } });
  t.equal((await list(token)).status, 200, 'a valid token is still accepted');
  const { body } = await app.inject('/metrics');
  t.match(body, /^latchkey_refused_credentials_total\{code="unauthorized"\} 3$/m);
});
