import { readdirSync } from 'node:fs';
import { eventually, request } from './support/process.ts';
import { openRaw, requestText, statusesIn } from './support/raw-client.ts';
import { serve } from './support/served.ts';
import { t } from './support/tap.ts';

/** The default of DATABASE_POOL_SIZE. */
const databasePool = 10;

const skip = process.platform === 'linux' ? false : 'what a process has open is read from /proc';

t.test('1,100 connections under `ulimit -n 1024` do not end the process', { skip }, async (t) => {
  const { process: service, url, tokens } = await serve(t, {}, { descriptors: 1_024 });
  const port = Number(new URL(url).port);
  const admin = { token: tokens['adminToken'] ?? '' };
  const open = () => readdirSync(`/proc/${service.child.pid}/fd`).length;
  t.equal((await request(`${url}/v1/keys`, admin)).status, 200);
  const before = open();
  const earlyConnection = await openRaw(t, port);
  earlyConnection.write(requestText('GET', '/livez'));
  const connections = await Promise.all(Array.from({ length: 1_100 }, () => openRaw(t, port)));
  await service.until(/New connections are closed/);
  t.ok(open() < 1_000, 'some descriptors are left for the database and for files');

  // The early connection still works. Its request needs the database and a reply.
  earlyConnection.write(requestText('POST', '/v1/keys', { ...admin, body: {}, headers: { connection: 'close' } }));
  t.same(statusesIn(await earlyConnection.readAll()), [200, 201]);

  // Descriptors opened for the reply belong to it, too.
  for (const { socket, write } of connections) {
    socket.pause();
    write(requestText('GET', '/docs/static/swagger-ui-bundle.js').repeat(10));
  }
  await eventually(async () => service.output().includes('"path":"/docs/static/swagger-ui-bundle.js"'));
  t.ok(open() < 1_000);
  for (const { socket } of connections) socket.resetAndDestroy();
  // The service may have opened more connections to Postgres meanwhile.
  await eventually(async () => open() <= before + databasePool);
  t.equal((await request(`${url}/v1/keys`, admin)).status, 200);
  t.equal(service.child.exitCode, null);
  t.notMatch(service.output(), /EMFILE|"level":(?:50|60)/);
});
