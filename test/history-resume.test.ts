import { verifyChain } from '../src/history/verify.ts';
import { startService } from './support/app.ts';
import { dbQuery } from './support/database.ts';
import { dbAddEvents } from './support/histories.ts';
import { t } from './support/tap.ts';

t.test('a chain can be verified from a known event on', async (t) => {
  const { client, urls, organizationId: chain } = await startService(t);
  await dbAddEvents(urls.superuser, chain, 600);
  const whole = await verifyChain(client.db, chain);
  const [start] = await dbQuery(urls.app, 'select hash from history where chain = $1 and sequence = 300', [chain]);
  const from = { sequence: 300, hash: start?.['hash'] as Buffer };
  await dbQuery(
    urls.superuser,
    `alter table history disable trigger history_append_only;
     delete from history where chain = '${chain}' and sequence < 300`,
  );

  t.same(await verifyChain(client.db, chain, { from }), whole, 'the events before it are not read');
  t.match(await verifyChain(client.db, chain), { events: 0, flaws: [{ firstSequence: 1 }] });
  const other = { sequence: 300, hash: Buffer.alloc(32, 1) };
  t.match(await verifyChain(client.db, chain, { from: other }), {
    events: 300,
    flaws: [{ firstSequence: 301, reason: 'the event does not follow the previous event' }],
  });
  const beyond = { sequence: whole.events + 2, hash: from.hash };
  t.match(await verifyChain(client.db, chain, { from: beyond }), {
    flaws: [{ firstSequence: whole.events + 1, lastSequence: whole.events + 2, reason: /the tail was cut/ }],
  });
  const end = { sequence: whole.events, hash: whole.head };
  t.same(await verifyChain(client.db, chain, { from: end }), whole, 'also if nothing follows');
  const checkpoints = [
    { chain, size: 300, hash: other.hash },
    { chain, size: 400, hash: other.hash },
  ];
  t.match(await verifyChain(client.db, chain, { from, checkpoints }), {
    flaws: [{ firstSequence: 1, lastSequence: 400, reason: /differ from a signed checkpoint/ }],
  });
});
