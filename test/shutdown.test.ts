import { once } from 'node:events';
import { connect } from 'node:net';
import { setTimeout as delay } from 'node:timers/promises';
import { pino } from 'pino';
import { createShutdown } from '../src/service/shutdown.ts';
import { dbQuery } from './support/database.ts';
import { type KeptReply, keepAliveClient } from './support/keep-alive-client.ts';
import { eventually, request } from './support/process.ts';
import { serve } from './support/served.ts';
import { holdTransaction, untilBlocked } from './support/sessions.ts';
import { t } from './support/tap.ts';
import { dbAllowed } from './support/usage.ts';

t.test('after SIGTERM under load every accepted request is answered', async (t) => {
  const { process: service, url, urls, tokens } = await serve(t, { LOG_LEVEL: 'debug', DRAIN_SECONDS: '3' });
  const { adminToken = '', verifierToken = '' } = tokens;
  const { body: key } = await request(`${url}/v1/keys`, { method: 'POST', token: adminToken, body: {} });
  const client = () => {
    const newClient = keepAliveClient(url);
    t.teardown(() => newClient.close());
    return newClient;
  };

  // An idle connection, one without a request, and one whose request does not end.
  const idle = client();
  await idle.send('/livez');
  const { port } = new URL(url);
  const silent = connect(Number(port), '127.0.0.1');
  const slow = connect(Number(port), '127.0.0.1');
  for (const socket of [silent, slow]) socket.on('error', () => undefined).resume();
  await Promise.all([once(silent, 'connect'), once(slow, 'connect')]);
  slow.write('POST /v1/verify HTTP/1.1\r\nHost: x\r\n');

  const verify = { method: 'POST', token: verifierToken, body: { key: key.key, permission: 'read' } };
  const replies: KeptReply[] = [];
  const dropped: unknown[] = [];
  let accepted = 0;
  const verifyInLoop = async () => {
    const own = client();
    for (;;) {
      try {
        const reply = await own.send('/v1/verify', verify);
        replies.push(reply);
        if (JSON.parse(reply.body).valid === true) accepted += 1;
        if (reply.headers.connection === 'close') return;
      } catch (error) {
        dropped.push(error);
        return;
      }
    }
  };
  const writer = async (number: number) => {
    const own = client();
    for (let round = 0; ; round++) {
      const body = { email: `p${number}-${round}@p.example`, permissions: ['read'] };
      try {
        const reply = await own.send('/v1/partners', { method: 'POST', token: adminToken, body });
        replies.push(reply);
        if (reply.headers.connection === 'close') return;
      } catch (error) {
        dropped.push(error);
        return;
      }
    }
  };
  const load = [...Array.from({ length: 12 }, verifyInLoop), ...[0, 1, 2, 3].map(writer)];
  await eventually(async () => accepted > 200);

  // Begun before the signal, and delayed by a lock until after it.
  const holder = await holdTransaction(t, urls.superuser, 'select * from history_heads for update');
  const heldPatch = client().send(`/v1/keys/${key.id}`, { method: 'PATCH', token: adminToken, body: { name: 'Held' } });
  await untilBlocked(urls.superuser);

  const probe = client();
  t.equal((await probe.send('/readyz')).status, 200);
  const signalledAtMs = performance.now();
  service.child.kill('SIGTERM');
  const notReady = await eventually(async () => {
    const reply = await probe.send('/readyz');
    return reply.status === 503 && reply;
  });
  t.match(JSON.parse(notReady.body), { code: 'unavailable', detail: 'The service is stopping.' });
  t.equal(notReady.headers.connection, 'close');
  const duringDrain = await client().send('/v1/verify', verify);
  t.match(JSON.parse(duringDrain.body), { valid: true }, 'a request that arrives during the drain is answered, too');
  accepted += 1;
  await holder.query('rollback');
  const patched = await heldPatch;
  t.equal(patched.status, 200);
  t.equal(patched.headers.connection, 'close', 'the reply announces the close, although the request came earlier');

  await Promise.all(load);
  t.same(dropped, [], 'every request got its reply');
  t.same([...new Set(replies.map(({ status }) => status))].sort(), [200, 201]);
  t.same(await service.exited, { code: 0, signal: null });
  const tookMs = performance.now() - signalledAtMs;
  t.ok(tookMs < 10_000, `it took ${tookMs} ms`);
  const [counts] = await dbQuery(
    urls.superuser,
    `select (select count(*)::int from partners) as partners,
      (select count(*)::int from history where action = 'partner.created') as recorded`,
  );
  const created = replies.filter(({ status }) => status === 201).length;
  t.same(counts, { partners: created, recorded: created }, 'each partner has its event');
  const used = [...(await dbAllowed(urls.superuser)).values()].reduce((total, uses) => total + uses, 0);
  t.equal(used, accepted, 'usage is written');
  const phases = [...service.output().matchAll(/"phase":"([a-z]+)"/g)].map(([, name]) => name);
  t.same(phases[0], 'drain');
  t.same(phases.slice(1, 4).sort(), ['jobs', 'requests', 'webhooks']);
  t.same(phases.slice(4, 6).sort(), ['checkpoints', 'usage']);
  t.same(phases.slice(6), ['database']);
});

t.test('a second signal ends the process at once', async (t) => {
  const { process: service, url } = await serve(t, { DRAIN_SECONDS: '60' });
  service.child.kill('SIGTERM');
  await eventually(async () => (await request(`${url}/readyz`)).status === 503);
  await delay(200);
  t.equal(service.child.exitCode, null, 'it drains');
  service.child.kill('SIGTERM');
  t.same(await service.exited, { code: 130, signal: null });
});

t.test('a request that does not end is aborted in time, and the exit code reports it', async (t) => {
  const { process: service, url, tokens } = await serve(t, { DRAIN_SECONDS: '0' });
  const { port } = new URL(url);
  const socket = connect(Number(port), '127.0.0.1');
  socket.on('error', () => undefined).resume();
  await once(socket, 'connect');
  socket.write(
    `POST /v1/keys HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer ${tokens['adminToken']}\r\n` +
      'Content-Type: application/json\r\nContent-Length: 50\r\n\r\n{',
  );
  // When a later request has been answered, this head has arrived.
  await request(`${url}/livez`);
  const signalledAtMs = performance.now();
  service.child.kill('SIGTERM');
  t.same(await service.exited, { code: 1, signal: null });
  t.ok(performance.now() - signalledAtMs < 10_000);
  t.match(service.output(), /"phase":"requests".*did not end in time/);
});

t.test(
  'phases run in reverse order, those added together side by side, and a failed or slow one does not block the others',
  async (t) => {
    const shutdown = createShutdown(pino({ level: 'silent' }));
    const ran: string[] = [];
    const phase = (name: string, run: () => Promise<unknown> = async () => undefined) => ({
      name,
      timeoutMs: 100,
      run: () => {
        ran.push(name);
        return run();
      },
    });
    shutdown.add(phase('first'));
    shutdown.add(
      phase('failing', () => Promise.reject(new Error('no'))),
      phase('beside it'),
    );
    shutdown.add(phase('hanging', () => new Promise(() => undefined)));
    t.same(await shutdown.run(), ['hanging', 'failing']);
    t.same(ran, ['hanging', 'failing', 'beside it', 'first']);
    t.same(await shutdown.run(), [], 'once');
  },
);
