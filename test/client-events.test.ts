import { type ClientEvent, createLatchkeyClient, LatchkeyUnavailable } from '../clients/node/src/client.ts';
import { LruMap } from '../clients/node/src/lru-map.ts';
import { startClient, startListening } from './support/hook.ts';
import { eventually } from './support/process.ts';
import { t } from './support/tap.ts';

t.test('the client reports each verification, where its verdict came from, and the state of the stream', async (t) => {
  const service = await startListening(t);
  const { body: key } = await service.admin.post('/v1/keys', {});
  const events: ClientEvent[] = [];
  const options = {
    url: service.url,
    token: service.verifier.token,
    onEvent: (event: ClientEvent) => events.push(event),
  };
  const client = await startClient(t, options);
  const verify = async (text: string) => client.verify({ key: text, permission: 'read' });
  t.same(events, [{ type: 'live' }]);
  await verify(key.key);
  await verify(key.key);
  await verify('clé');
  t.same(events.splice(0), [
    { type: 'live' },
    { type: 'verified', code: 'valid', source: 'latchkey' },
    { type: 'verified', code: 'valid', source: 'memory' },
    { type: 'verified', code: 'malformed', source: 'memory' },
  ]);
  await service.app.close();
  await eventually(async () => events.some(({ type }) => type === 'not_live'));
  await eventually(async () => events.some(({ type }) => type === 'trouble'));
  events.splice(0);
  t.equal((await verify(key.key)).code, 'valid');
  await t.rejects(verify(key.key.replace('lk_k_', 'lk_k_0')), LatchkeyUnavailable);
  t.same(
    events
      .filter(({ type }) => type !== 'trouble')
      .map(({ type, ...event }) => ('source' in event ? event.source : type)),
    ['outage', 'unavailable'],
  );
  t.notMatch(JSON.stringify(events), new RegExp(`${key.key}|${service.verifier.token}`), 'no secret');
});

t.test('without onEvent, the client prints why it cannot verify, without the token', async (t) => {
  const service = await startListening(t);
  const printed = t.capture(console, 'error');
  const client = createLatchkeyClient({ url: service.url, token: `${service.verifier.token.slice(0, -1)}!` });
  t.teardown(() => client.close());
  await t.rejects(async () => client.verify({ key: 'lk_k_0', permission: 'read' }), LatchkeyUnavailable);
  const lines = printed().map(({ args }) => String(args[0]));
  t.match(lines[0], /^API keys cannot be verified with Latchkey: Latchkey answered 401/);
  t.notMatch(lines.join(), new RegExp(service.verifier.token.slice(5, -1)));
});

t.test('a full map drops the least recently used entry, and reports each value that it drops', async (t) => {
  const dropped: string[] = [];
  const map = new LruMap<string, string>(2, (value) => dropped.push(value));
  map.set('a', 'A');
  map.set('b', 'B');
  t.equal(map.get('a'), 'A');
  t.equal(map.peek('b'), 'B');
  map.set('c', 'C');
  t.same([dropped, map.peek('b'), map.peek('a')], [['B'], undefined, 'A'], 'peek is no use');
  map.set('a', 'A2');
  map.delete('nothing');
  t.same(dropped, ['B', 'A'], 'a replaced value is dropped');
  map.clear();
  t.same(dropped, ['B', 'A', 'C', 'A2']);
  t.equal(map.get('a'), undefined);
});
