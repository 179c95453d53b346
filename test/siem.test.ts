import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { readdir, readFile, rm, writeFile } from 'node:fs/promises';
import path from 'node:path';
import { text } from 'node:stream/consumers';
import { startService } from './support/app.ts';
import { archivist } from './support/archives.ts';
import { scratch } from './support/instance.ts';
import { eventually } from './support/process.ts';
import { snippetsOf } from './support/snippets.ts';
import { t } from './support/tap.ts';

t.test('the loop of docs/siem.md gets each event once and in order, also if it is killed', async (t) => {
  const { app, admin } = await startService(t);
  const url = await app.listen({ host: '127.0.0.1', port: 0 });
  const [loop = '', token = '', start = ''] = await snippetsOf('docs/siem.md', 'The loop', 'sh');
  const folder = await scratch(t);
  await writeFile(path.join(folder, 'follow-history.sh'), loop);
  const env = { PATH: process.env['PATH'], LATCHKEY: url, ADMIN_TOKEN: admin.token, PAUSE: '0.02' };
  const running: ChildProcess[] = [];
  t.teardown(() => running.map(stop));
  const run = (command: string) => {
    const child = spawn('bash', ['-c', command], { cwd: folder, env, stdio: 'ignore', detached: true });
    running.push(child);
    return child;
  };
  await once(run(token), 'exit');

  let isWriting = true;
  const writing = (async () => {
    for (let round = 0; isWriting; round++) await admin.patch('/v1/organization', { name: `Name ${round}` });
  })();
  for (let round = 0; round < 8; round++) {
    const follower = run(start);
    const before = (await filesIn(folder)).length;
    await eventually(async () => (await filesIn(folder)).length > before);
    await new Promise((resolve) => setTimeout(resolve, Math.random() * 60));
    await stop(follower);
  }
  isWriting = false;
  await writing;
  const [newest] = (await admin.get('/v1/history?limit=1')).body.data;
  const follower = run(start);
  await eventually(async () => Number.parseInt((await filesIn(folder)).at(-1) ?? '0', 10) === newest.sequence);
  await stop(follower);

  const texts = await Promise.all((await filesIn(folder)).map((name) => readFile(path.join(folder, 'events', name))));
  const authorization = `Bearer ${admin.token}`;
  const whole = await app.inject({ url: '/v1/history/export', headers: { authorization } });
  t.ok(texts.length >= 9 && newest.sequence > 15, `${newest.sequence} events in ${texts.length} files`);
  t.equal(Buffer.concat(texts).toString(), whole.body, 'the files are the whole export');
});

t.test('the loop of docs/siem.md stops if events were archived before it has read them', async (t) => {
  const service = await startService(t);
  const { app, admin, organizationId } = service;
  const url = await app.listen({ host: '127.0.0.1', port: 0 });
  const [loop = '', token = '', start = ''] = await snippetsOf('docs/siem.md', 'The loop', 'sh');
  const folder = await scratch(t);
  await writeFile(path.join(folder, 'follow-history.sh'), loop);
  const env = { PATH: process.env['PATH'], LATCHKEY: url, ADMIN_TOKEN: admin.token, PAUSE: '0.02' };
  const run = (command: string) => {
    const child = spawn('bash', ['-c', command], {
      cwd: folder,
      env,
      stdio: ['ignore', 'ignore', 'pipe'],
      detached: true,
    });
    t.teardown(() => stop(child));
    return child;
  };
  await once(run(token), 'exit');
  const first = run(start);
  await eventually(async () => (await filesIn(folder)).length === 1);
  await stop(first);
  await admin.patch('/v1/organization', { name: 'Changed' });
  await admin.patch('/v1/organization', { name: 'Changed again' });
  await archivist(t, service).archive(organizationId, (await admin.get('/v1/history/checkpoint')).body);
  const second = run(start);
  const said = text(second.stderr);
  t.same(await once(second, 'exit'), [1, null]);
  t.equal(await said, 'Events 4 to 4 were archived before they were read: they are in the file of the archive.\n');
  await rm(path.join(folder, 'events'), { recursive: true });
  const fresh = run(start);
  await eventually(async () => (await filesIn(folder)).length === 1);
  await stop(fresh);
});

async function filesIn(folder: string): Promise<string[]> {
  return (await readdir(path.join(folder, 'events')).catch(() => [])).toSorted();
}

/** Kills a process with its children, without notice. */
async function stop(child: ChildProcess): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null || child.pid === undefined) return;
  const exited = once(child, 'exit');
  process.kill(-child.pid, 'SIGKILL');
  await exited;
}
