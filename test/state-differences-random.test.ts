import fc from 'fast-check';
import { newId } from '../src/domain/ids.ts';
import { type Json, startService, type TestService } from './support/app.ts';
import { dbQuery } from './support/database.ts';
import { differencesIn, purge } from './support/state-differences.ts';
import { t } from './support/tap.ts';

// Rows and events agree after random requests. `MODEL_RUNS` is the number of sequences.

const dayMs = 86_400_000;

t.test('after any sequence of API requests, rows and events agree', { timeout: 3_600_000 }, async (t) => {
  const service = await startService(t);
  const { operator } = service;
  const { body: organization } = await operator.post('/v1/organizations', { name: 'Random' });
  const headers = { 'latchkey-organization': organization.id as string };
  const keys: string[] = [];
  const partners: string[] = [];
  const tokens: string[] = [];
  /** Picks one of the last four, so that changes meet the same records. */
  const pick = (from: readonly string[], index: number) => from.at(-1 - (index % 4)) ?? from.at(-1) ?? newId('key');
  const limit = fc.option(
    fc.record({ requests: fc.integer({ min: 1, max: 9 }), windowSeconds: fc.constantFrom(1, 60) }),
  );
  const soon = fc.option(fc.integer({ min: 1, max: 90 }));
  const until = (days: number | null) =>
    days === null ? null : new Date(service.clock.nowMs() + days * dayMs).toISOString();
  const settings = fc.record(
    {
      name: fc.option(fc.constantFrom('a', 'b')),
      days: soon,
      rateLimit: limit,
      allowedIps: fc.subarray(['203.0.113.7', '10.0.0.0/8', '2001:db8::/32']),
      metadata: fc.dictionary(fc.constantFrom('a', 'ü', '1'), fc.jsonValue({ maxDepth: 2 }), { maxKeys: 2 }),
    },
    { requiredKeys: [] },
  );
  const toBody = ({ days, ...others }: Json) => (days === undefined ? others : { ...others, expiresAt: until(days) });
  const permissions = fc.constantFrom(['read'], ['write'], ['read', 'write']);
  const keyActions = fc.constantFrom(
    'suspend',
    'resume',
    'restore',
    'restore',
    'rotate',
    'delete',
    'delete?reason=compromised',
  );
  const partnerActions = fc.constantFrom('suspend', 'resume', 'restore', 'delete');
  const step = fc.oneof(
    fc.tuple(fc.nat(9), settings).map(([which, input]) => async () => {
      const where =
        which < 5 ? {} : { partnerId: pick(partners, which), permission: which % 2 === 0 ? 'read' : 'write' };
      const { body } = await operator.post('/v1/keys', { ...toBody(input), ...where }, headers);
      if (body.key !== undefined) keys.push(body.id);
    }),
    fc.tuple(fc.nat(99), settings).map(
      ([which, input]) =>
        () =>
          operator.patch(`/v1/keys/${pick(keys, which)}`, toBody(input), headers),
    ),
    {
      weight: 8,
      arbitrary: fc
        .tuple(fc.nat(99), keyActions, fc.constantFrom(undefined, 0, 60))
        .map(([which, action, end]) => async () => {
          const path = `/v1/keys/${pick(keys, which)}`;
          const [name, query] = action.split('?');
          if (name === 'delete') return operator.delete(`${path}${query === undefined ? '' : `?${query}`}`, headers);
          const reply = await operator.post(
            `${path}/${action}`,
            action === 'rotate' ? { expireOldAfterSeconds: end } : undefined,
            headers,
          );
          if (action === 'rotate' && reply.status === 201) keys.push(reply.body.id);
          return reply;
        }),
    },
    fc.tuple(permissions, limit).map(([granted, rateLimit]) => async () => {
      const input = { email: `${partners.length}@p.example`, permissions: granted, rateLimit };
      const { body, status } = await operator.post('/v1/partners', input, headers);
      if (status === 201) partners.push(body.id);
      if (status === 201) keys.push(...body.keys.map(({ id }: Json) => id));
    }),
    fc.tuple(fc.nat(99), permissions, limit).map(
      ([which, granted, rateLimit]) =>
        () =>
          operator.patch(
            `/v1/partners/${pick(partners, which)}`,
            { permissions: granted, rateLimit, name: `${which}` },
            headers,
          ),
    ),
    {
      weight: 4,
      arbitrary: fc.tuple(fc.nat(99), partnerActions).map(([which, action]) => () => {
        const path = `/v1/partners/${pick(partners, which)}`;
        return action === 'delete'
          ? operator.delete(path, headers)
          : operator.post(`${path}/${action}`, undefined, headers);
      }),
    },
    fc.tuple(fc.constantFrom('admin', 'verifier'), soon).map(([role, days]) => async () => {
      const input = { role, scopes: ['read'], name: role, email: role === 'admin' ? 'a@example.com' : undefined };
      const { body, status } = await operator.post('/v1/access-tokens', { ...input, expiresAt: until(days) }, headers);
      if (status === 201) tokens.push(body.id);
    }),
    fc.nat(99).map((which) => () => operator.delete(`/v1/access-tokens/${pick(tokens, which)}`, headers)),
    fc.constantFrom('x', 'y').map((name) => () => operator.patch('/v1/organization', { name }, headers)),
    fc.nat(5).map((more) => () => operator.put('/v1/rate-limit', { requests: 1 + more, windowSeconds: 60 }, headers)),
    fc.nat(99).map((which) => async () => {
      const { body } = await operator.post(
        '/v1/recovery-requests',
        { keyId: pick(keys, which), details: 'x' },
        headers,
      );
      if (body.id !== undefined) await operator.post(`/v1/recovery-requests/${body.id}/approve`, undefined);
    }),
    fc
      .constantFrom(1_000, 1_000, 3_600_000, 3_600_000, 2 * dayMs, 31 * dayMs)
      .map((ms) => async () => service.later(ms)),
    fc.constant(() => purge(service)),
  );
  await changeEverything(service, headers);
  const numRuns = Number(process.env['MODEL_RUNS'] ?? 10);
  await fc.assert(
    fc.asyncProperty(fc.array(step, { minLength: 30, maxLength: 60 }), async (steps) => {
      for (const send of steps) {
        const reply = await send();
        if (typeof reply === 'object' && reply.status >= 500) throw new Error(JSON.stringify(reply.body));
      }
      const differences = await differencesIn({ admin: operator }, headers);
      if (differences.length > 0) throw new Error(JSON.stringify(differences));
    }),
    { numRuns, endOnFailure: process.env['CI'] === 'true' },
  );
});

/** Every kind of change at least once, before the random ones. */
async function changeEverything(service: TestService, headers: Record<string, string>): Promise<void> {
  const { operator } = service;
  const input = { email: 'first@p.example', permissions: ['read', 'write'] };
  const { body: partner } = await operator.post('/v1/partners', input, headers);
  const [key, other] = partner.keys.map(({ id }: Json) => `/v1/keys/${id}`);
  const token = { role: 'verifier', scopes: ['read'], name: 'First' };
  const { body: made } = await operator.post('/v1/access-tokens', token, headers);
  const change = async (path: string, operations: string[]) => {
    await operator.patch(path, { name: 'First' }, headers);
    for (const operation of operations) await operator.post(`${path}/${operation}`, undefined, headers);
    await operator.delete(path, headers);
    await operator.post(`${path}/restore`, undefined, headers);
  };
  await change(key, ['suspend', 'resume', 'rotate']);
  await change(`/v1/partners/${partner.id}`, ['suspend', 'resume']);
  await operator.delete(`/v1/access-tokens/${made.id}`, headers);
  await operator.patch('/v1/organization', { name: 'First' }, headers);
  await operator.put('/v1/rate-limit', { requests: 7, windowSeconds: 60 }, headers);
  await operator.delete(other, headers);
  const deleted = { keyId: partner.keys[1].id, details: 'x' };
  const { body: request } = await operator.post('/v1/recovery-requests', deleted, headers);
  await operator.post(`/v1/recovery-requests/${request.id}/approve`, undefined);
  await operator.delete(other, headers);
  service.later(31 * dayMs);
  await purge(service);
  const done = await dbQuery(service.urls.app, 'select distinct action from history where chain = $1', [
    headers['latchkey-organization'],
  ]);
  const actions = done.map(({ action }) => action);
  const missing = requiredActions.filter((action) => !actions.includes(action));
  if (missing.length > 0) throw new Error(`${missing.join(', ')}: not among ${actions.join(', ')}`);
}

const requiredActions = [
  ...['key.created', 'key.updated', 'key.suspended', 'key.resumed', 'key.rotated', 'key.deleted', 'key.restored'],
  ...['key.purged', 'partner.created', 'partner.updated', 'partner.suspended', 'partner.resumed', 'partner.deleted'],
  ...['partner.restored', 'access_token.created', 'access_token.deleted', 'organization.updated', 'rate_limit.updated'],
  ...['recovery.requested', 'recovery.approved'],
];
