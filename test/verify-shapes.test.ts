import fc from 'fast-check';
import { newId } from '../src/domain/ids.ts';
import { ApiKeyRecord, type ApiKeyRow } from '../src/verification/api-key-record.ts';
import { verdictCodes } from '../src/verification/policy.ts';
import { verdictJson, verdictView } from '../src/verification/verdict-view.ts';
import type { Verdict } from '../src/verification/verifier.ts';
import { startService } from './support/app.ts';
import { t } from './support/tap.ts';

// Verdicts are written without zod. This compares them with the schema of the API document.

/**
 * The metadata that a key can have. `__proto__` is rejected before it is stored (test/input.test.ts), and zod skips it,
 * so it is left out here.
 */
const anyMetadata = fc
  .dictionary(fc.string(), fc.jsonValue())
  .filter((metadata) => !JSON.stringify(metadata).includes('"__proto__":'));

const anyKey = fc
  .record({
    partner: fc.boolean(),
    externalId: fc.option(fc.string()),
    name: fc.option(fc.string()),
    metadata: anyMetadata,
    expires: fc.option(fc.date({ noInvalidDate: true, min: new Date(0), max: new Date('9999-01-01') })),
    permission: fc.constantFrom('read' as const, 'write' as const, 'read_write' as const),
  })
  .map(
    ({ partner, externalId, name, metadata, expires, permission }) =>
      new ApiKeyRecord(
        {
          id: newId('key'),
          organization_id: newId('org'),
          partner_id: partner ? newId('partner') : null,
          partner_external_id: partner ? externalId : null,
          partner_email: partner ? 'p@p.example' : null,
          permission,
          scopes: partner ? ['a', 'b'] : [],
          name,
          metadata,
          allowed_ips: partner ? ['10.0.0.0/8'] : [],
          expires_at: expires,
          tag: Buffer.alloc(32),
          tag_keyring_id: 'one',
          created_at: new Date(),
        } as ApiKeyRow,
        0,
      ),
  );

const anyCount = fc.record({
  isExceeded: fc.boolean(),
  limit: fc.integer({ min: 1, max: 1_000_000_000 }),
  windowSeconds: fc.integer({ min: 1, max: 86_400 }),
  remaining: fc.nat(1_000_000_000),
  resetSeconds: fc.integer({ min: 1, max: 86_400 }),
  policy: fc.constantFrom('owner' as const, 'key' as const),
});

t.test('the text of a verdict is JSON of the declared shape, without other members', async (t) => {
  const verdicts = fc.oneof(
    fc.constantFrom('malformed' as const, 'not_found' as const).map((code) => ({ code, key: null, count: null })),
    fc.record({ code: fc.constantFrom(...verdictCodes), key: anyKey, count: fc.option(anyCount) }),
  ) as fc.Arbitrary<Verdict>;
  const isOfShape = fc.property(verdicts, (verdict) => {
    for (let round = 0; round < 2; round++) {
      const value: unknown = JSON.parse(verdictJson(verdict));
      t.strictSame(verdictView.strict().parse(value), value);
      const { valid, code, keyId, name } = verdictView.parse(value);
      if (valid !== (code === 'valid') || code !== verdict.code) return false;
      if (keyId !== (verdict.key?.id ?? null) || name !== (verdict.key?.name ?? null)) return false;
    }
    return true;
  });
  t.doesNotThrow(() => fc.assert(isOfShape, { numRuns: 300 }));
});

t.test('introspection follows RFC 7662', async (t) => {
  const { app, admin, verifier, operator, organizationId, clock, later } = await startService(t);
  const introspect = async (
    form: string,
    token = verifier.token,
    contentType = 'application/x-www-form-urlencoded',
  ) => {
    const response = await app.inject({
      method: 'POST',
      url: '/v1/introspect',
      headers: { authorization: `Bearer ${token}`, 'content-type': contentType },
      payload: form,
    });
    return { status: response.statusCode, body: response.json() };
  };
  const { body: partner } = await admin.post('/v1/partners', { email: 'p@p.example', permissions: ['write'] });
  const expiresAt = new Date(Math.ceil(clock.nowMs() / 1000) * 1000 + 60_000);
  const { body: ownKey } = await admin.post('/v1/keys', { expiresAt: expiresAt.toISOString() });
  const [partnerKey] = partner.keys;
  t.same((await introspect(`token=${partnerKey.key}`)).body, {
    active: true,
    scope: 'write',
    client_id: partner.id,
    sub: partnerKey.id,
    iat: Math.floor(Date.parse(partnerKey.createdAt) / 1000),
  });
  t.match((await introspect(`token=${ownKey.key}&token_type_hint=access_token`)).body, {
    active: true,
    scope: 'read write',
    client_id: organizationId,
    exp: expiresAt.getTime() / 1000,
  });
  const { body: other } = await operator.post('/v1/organizations', { name: 'Other' });
  const { body: otherKey } = await operator.post('/v1/keys', {}, { 'latchkey-organization': other.id });
  await admin.delete(`/v1/keys/${partnerKey.id}`);
  later(120_000);
  for (const [what, key] of [
    ['nonsense', 'nonsense'],
    ['deleted', partnerKey.key],
    ['expired', ownKey.key],
    ["another organization's", otherKey.key],
    ['an access token', verifier.token],
  ] as const) {
    t.strictSame((await introspect(`token=${key}`)).body, { active: false }, what);
  }
  t.match(await introspect('token_type_hint=x'), { status: 400, body: { errors: [{ path: 'body.token' }] } });
  t.match(await introspect('{"token":"x"}', verifier.token, 'application/json'), { status: 415 });
  const { body: usage } = await admin.get(`/v1/keys/${ownKey.id}/usage`);
  t.match(usage.total, { allowed: 0, denied: 0 }, 'introspection is not counted');
});
