import { startService } from './support/app.ts';
import { requireDocumented, undocumentedIn } from './support/document.ts';
import { t } from './support/tap.ts';

// Every reply of every test is compared with the OpenAPI document (test/support/document.ts). This tests that
// comparison.

t.test('a real reply passes, and each deviation is found', async (t) => {
  const { app, admin } = await startService(t);
  const authorization = `Bearer ${admin.token}`;
  const created = await app.inject({ method: 'POST', url: '/v1/keys', headers: { authorization }, payload: {} });
  const reply = {
    method: 'POST',
    url: '/v1/keys?x=1',
    status: 201,
    contentType: String(created.headers['content-type']),
    text: created.body,
  };
  t.equal(undocumentedIn(reply), undefined);
  const changed = (change: object) => JSON.stringify({ ...created.json(), ...change });
  for (const [what, other, found] of [
    ['another status', { status: 202 }, /the document has only 201, 400/],
    ['another type', { contentType: 'text/html' }, /only application\/json, not text\/html/],
    ['a missing member', { text: changed({ id: undefined }) }, /must have required property 'id'/],
    ['an additional member', { text: changed({ argon2Hash: 'x' }) }, /must NOT have additional properties/],
    ['a wrong value', { text: changed({ permission: 'admin' }) }, /permission must be equal to one of/],
    ['a wrong time', { text: changed({ createdAt: 'today' }) }, /createdAt must match format "date-time"/],
    ['no null', { text: changed({ organizationId: null }) }, /organizationId must be string/],
    ['an error that is not a problem', { status: 409, text: '{"error":"x"}' }, /is application\/json and no problem/],
    [
      'an unknown code',
      { status: 409, contentType: 'application/problem+json', text: '{"code":"x"}' },
      /code must be equal to one of/,
    ],
  ] as const) {
    t.match(undocumentedIn({ ...reply, ...other }), found, what);
    t.throws(() => requireDocumented({ ...reply, ...other }), /^POST \/v1\/keys/, what);
  }
});

t.test('a path segment is not mistaken for an id, and an undocumented reply must be a problem', async (t) => {
  const verified = { method: 'GET', url: 'http://host:80/v1/history/verify', status: 200, text: '{}' };
  t.match(undocumentedIn({ ...verified, contentType: 'application/json' }), /must have required property 'valid'/);
  const unknown = { method: 'GET', url: '/v1/nothing', status: 404, contentType: 'application/json', text: '{}' };
  t.match(undocumentedIn(unknown), /no problem/);
});
