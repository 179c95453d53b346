import { type Json, startService } from './support/app.ts';
import { t } from './support/tap.ts';

t.test('a cursor is only valid for the list that returned it', async (t) => {
  const { admin, operator, organizationId } = await startService(t);
  const keys: Json[] = [];
  for (let index = 0; index < 3; index++) {
    const { body: key } = await admin.post('/v1/keys', {});
    keys.push(key);
    await admin.delete(`/v1/keys/${key.id}`);
    await admin.post(`/v1/partners`, { email: `p${index}@p.example`, permissions: ['read', 'write'] });
    await admin.post('/v1/access-tokens', { role: 'verifier', name: `v${index}`, scopes: ['read'] });
    await admin.post('/v1/webhooks', { url: 'http://127.0.0.1:9/', events: ['*'] });
  }
  const [first, second] = keys as [Json, Json];
  const named = { 'latchkey-organization': organizationId };
  const lists: Array<[list: string, others: string[]]> = [
    ['/v1/history', [`/v1/keys/${first.id}/history`, '/v1/history?action=key.created', '/v1/history?kind=refused']],
    [`/v1/keys/${first.id}/history`, ['/v1/history', `/v1/keys/${second.id}/history`, `/v1/keys/${first.id}/viewers`]],
    [
      '/v1/history?action=key.created',
      ['/v1/history', '/v1/history?action=key.deleted', '/v1/history?action=key.created&from=2020-01-01T00:00:00Z'],
    ],
    ['/v1/keys?includeDeleted=true', ['/v1/keys', '/v1/keys?includeDeleted=true&permission=read']],
    ['/v1/partners', ['/v1/partners?includeDeleted=true', '/v1/keys']],
    ['/v1/access-tokens', ['/v1/keys', '/v1/webhooks']],
    ['/v1/webhooks', ['/v1/partners', '/v1/access-tokens']],
    ['/v1/rows', ['/v1/keys']],
  ];
  for (const [list, others] of lists) {
    const withPage = (path: string, more: string) => `${path}${path.includes('?') ? '&' : '?'}${more}`;
    const { body } = await admin.get(withPage(list, 'limit=1'));
    t.type(body.nextCursor, 'string', list);
    const next = await admin.get(withPage(list, `limit=2&cursor=${body.nextCursor}`));
    t.equal(next.status, 200, `${list} continues, also with another limit`);
    t.notSame(next.body.data[0], body.data[0]);
    for (const other of others) {
      const { status, body: problem } = await admin.get(withPage(other, `cursor=${body.nextCursor}`));
      t.same([status, problem.code], [400, 'cursor_invalid'], `${other} with a cursor of ${list}`);
    }
    if (list !== '/v1/history') continue;
    t.equal((await operator.get(`/v1/history?cursor=${body.nextCursor}`)).status, 400, "the installation's history");
    t.equal((await operator.get(`/v1/history?cursor=${body.nextCursor}`, named)).status, 200, 'the same history');
  }
});
