import type { SoakSession, SoakStory } from './session.ts';

// Requests that change nothing.

/** Reads each list, with each filter, and its second page. */
export function readLists(session: SoakSession): SoakStory {
  const { callerWith, keys, target } = session;
  const admin = callerWith(target.adminToken);
  const operator = callerWith(target.operatorToken);
  const at = (days: number) => new Date(Date.now() + days * 86_400_000).toISOString();
  const ofKeys = () => [
    'name=Named',
    'lastFour=abcd',
    'scope=invoices:read',
    'metadata.team=soak',
    `expiresBefore=${at(1)}`,
    `createdBefore=${at(-1 / 1_440)}`,
    `lastUsedBefore=${at(-1 / 1_440)}`,
    'status=suspended',
    'status=deleted&includeDeleted=true',
    'partnerId=default',
    'permission=write',
    'pastMaxLifetime=true',
    'includeDeleted=true&status=expired',
  ];
  const lists = () => [
    '/v1/rows',
    '/v1/keys',
    ...ofKeys().map((filter) => `/v1/keys?${filter}`),
    '/v1/partners',
    '/v1/partners?email=soak',
    '/v1/partners?externalId=customer-1',
    '/v1/claims',
    '/v1/claims?status=redeemed',
    '/v1/recovery-requests?status=declined',
    '/v1/webhooks',
    '/v1/access-tokens',
    '/v1/history',
    '/v1/history?action=key.revealed',
    `/v1/history?from=${at(-1 / 1_440)}&action=key.created`,
    '/v1/history?kind=refused',
  ];
  const others = ['/v1/organization', '/v1/rate-limit', '/v1/self', '/openapi.json', '/problems', '/readyz'];
  let next = 0;
  return async () => {
    const paths = [...lists(), ...others];
    const path = paths[next % paths.length] ?? '/v1/self';
    next += 1;
    if (others.includes(path)) {
      await admin.call(200, 'GET', path);
      return;
    }
    const page = `${path}${path.includes('?') ? '&' : '?'}limit=20`;
    const { nextCursor } = await admin.call(200, 'GET', page);
    if (nextCursor !== null) await admin.call(200, 'GET', `${page}&cursor=${nextCursor}`);
    const key = keys[next % (keys.length + 1)];
    if (key !== undefined) {
      await admin.call(200, 'GET', `/v1/keys/${key.id}/history`);
      await admin.call(200, 'GET', `/v1/keys/${key.id}/usage?granularity=hour`);
      await admin.call(200, 'GET', `/v1/keys/${key.id}/viewers`);
    }
    await operator.call(200, 'GET', '/v1/organizations');
  };
}

/** Verifies history, exports what is new, and compares checkpoints: none may be smaller than an earlier one. */
export function auditHistory(session: SoakSession): SoakStory {
  const { call, send } = session.callerWith(session.target.adminToken);
  let exported = 0;
  let signed = 0;
  return async () => {
    const verdict = await call(200, 'GET', '/v1/history/verify');
    if (!verdict.valid || verdict.stateDifferences.length > 0) session.fail(`history: ${JSON.stringify(verdict)}`);
    const reply = await send('GET', `/v1/history/export?after=${exported}`);
    const sequences = reply.body
      .split('\n')
      .filter((line) => line !== '')
      .map((line) => JSON.parse(line).sequence);
    if (sequences.some((sequence, index) => sequence !== exported + index + 1)) session.fail('an export has a gap');
    exported += sequences.length;
    if (Number(reply.headers['x-latchkey-last-sequence']) !== exported) session.fail('an export ended early');
    const checkpoint = await send('GET', '/v1/history/checkpoint');
    const size = Number(checkpoint.body.split('\n')[1]);
    if (!(size >= signed && size >= exported)) session.fail(`a checkpoint of ${size} events after ${signed}`);
    signed = size;
    await session.pause(50);
  };
}
