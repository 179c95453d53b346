import { execFileSync } from 'node:child_process';
import { appendFileSync, chmodSync, readFileSync, statSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import type { Test } from 'tap';
import { parseKeyring } from '../src/crypto/keyring.ts';
import { openCheckpointing } from '../src/history/checkpoints/checkpointing.ts';
import { createLogger } from '../src/service/logger.ts';
import { startService, type TestService } from './support/app.ts';
import { dbQuery, roleOf } from './support/database.ts';
import { scratchFolder } from './support/histories.ts';
import { keyringOf, keyringText } from './support/keyrings.ts';
import { listenHttp } from './support/listeners.ts';
import { eventually, runEntry } from './support/process.ts';
import { snippetsOf } from './support/snippets.ts';
import { t } from './support/tap.ts';

const keyring = keyringOf('evidence');

/** The scheduled signing of a service. The test triggers each round. */
async function checkpointingOf(
  t: Test,
  service: TestService,
  given: { file?: string; url?: string; everyMs?: number; keyring?: typeof keyring } = {},
) {
  const lines: string[] = [];
  const logger = createLogger({
    level: 'debug',
    tokenPrefix: 'lk',
    destination: { write: (line) => lines.push(line) },
  });
  const checkpointing = await openCheckpointing({ db: service.client.db, keyring, logger, everyMs: 50, ...given });
  let isClosed = false;
  const close = async () => {
    if (!isClosed) await checkpointing.close();
    isClosed = true;
  };
  t.teardown(close);
  return { checkpointing, checkpoints: checkpointing.checkpoints, lines, close };
}

const sizesIn = (text: string, chain: string) =>
  [...text.matchAll(/^latchkey\/(\S+)\n(\d+)\n/gm)]
    .filter((found) => found[1] === chain)
    .map((found) => Number(found[2]));

const change = ({ admin }: TestService, requests: number) =>
  admin.put('/v1/rate-limit', { requests, windowSeconds: 60 });

t.test('each change is signed once on schedule, into the checkpoint file and the log', async (t) => {
  const service = await startService(t, { keyring });
  const { organizationId } = service;
  const file = path.join(scratchFolder(t), 'checkpoints');
  const { checkpointing, lines, close } = await checkpointingOf(t, service, { file });
  t.equal(statSync(file).mode & 0o777, 0o600);
  checkpointing.start();
  const written = () => readFileSync(file, 'utf8');
  await eventually(async () => sizesIn(written(), organizationId).length === 1);
  t.same(sizesIn(written(), 'installation'), [1], 'the installation has a chain too');
  const [first = 0] = sizesIn(written(), organizationId);
  await change(service, 5);
  await eventually(async () => sizesIn(written(), organizationId).length === 2);
  t.same(sizesIn(written(), organizationId), [first, first + 1]);
  t.same(sizesIn(written(), 'installation'), [1], 'an unchanged chain is not signed again');
  const logged = () =>
    lines.filter((line) => line.includes('new checkpoint')).map((line) => JSON.parse(line).checkpoint);
  // The log line is written after the file.
  await eventually(async () => logged().length === 3);
  t.same(logged().join('\n'), written().trimStart());

  await change(service, 6);
  await close();
  t.equal(sizesIn(written(), organizationId).at(-1), first + 2, 'it signs once more at the end');
});

t.test('signed checkpoints are remembered after a restart', async (t) => {
  const service = await startService(t, { keyring });
  const { organizationId, urls } = service;
  const file = path.join(scratchFolder(t), 'checkpoints');
  const first = await checkpointingOf(t, service, { file });
  await first.checkpoints.signChanged();
  await first.close();
  const before = readFileSync(file, 'utf8');

  const second = await checkpointingOf(t, service, { file });
  t.same(await second.checkpoints.signChanged(), [], 'nothing has changed');
  await second.close();
  await dbQuery(
    urls.superuser,
    'update history_heads set sequence = 2, hash = h.hash from history h where h.chain = $1 and history_heads.chain = $1 and h.sequence = 2',
    [organizationId],
  );
  const third = await checkpointingOf(t, service, { file });
  t.same(await third.checkpoints.signChanged(), []);
  t.equal(third.checkpoints.refused(), 1);
  await t.rejects(third.checkpoints.sign(organizationId), { code: 'history_altered' });
  t.match(third.lines.join(''), /"level":50.*it has 2 events, but \d+ were signed/);
  t.equal(readFileSync(file, 'utf8'), before);
});

t.test('a file with a torn last line is continued after it, wherever the crash cut it', async (t) => {
  const service = await startService(t, { keyring });
  const { organizationId } = service;
  const folder = scratchFolder(t);
  const wholeFile = path.join(folder, 'whole');
  const first = await checkpointingOf(t, service, { file: wholeFile });
  await first.checkpoints.sign(organizationId);
  await change(service, 1);
  await first.checkpoints.sign(organizationId);
  const text = readFileSync(wholeFile);
  const start = text.lastIndexOf('\nlatchkey/') + 1;
  const [keptSize = 0] = sizesIn(text.toString(), organizationId);
  await change(service, 2);
  for (let end = start; end <= text.length; end += 7) {
    const file = path.join(folder, `torn-${end}`);
    writeFileSync(file, text.subarray(0, end));
    const next = await checkpointingOf(t, service, { file });
    await next.checkpoints.sign(organizationId);
    await next.close();
    const written = readFileSync(file, 'utf8');
    const sizes = sizesIn(written, organizationId);
    t.same([sizes[0], sizes.at(-1)], [keptSize, keptSize + 2], `torn after ${end - start} bytes`);
    const last = await checkpointingOf(t, service, { file });
    await last.checkpoints.sign(organizationId);
    t.equal(readFileSync(file, 'utf8'), written, 'it is remembered');
    await last.close();
  }
});

t.test('a long file is replaced by the last checkpoints of its chains, as the page says', async (t) => {
  const service = await startService(t, { keyring });
  const { organizationId } = service;
  const folder = scratchFolder(t);
  const file = path.join(folder, 'checkpoints');
  const first = await checkpointingOf(t, service, { file });
  for (let requests = 1; requests <= 12; requests++) {
    await change(service, requests);
    await first.checkpoints.signChanged();
  }
  await first.close();
  const written = readFileSync(file, 'utf8');
  const lastSize = sizesIn(written, organizationId).at(-1) ?? 0;
  const torn = written.slice(written.lastIndexOf('\nlatchkey/'));
  const [snippet = ''] = (await snippetsOf('docs/history.md', 'Checkpoints', 'sh')).filter((one) => /^awk/m.test(one));
  for (let kept = 1; kept < torn.length; kept += 9) {
    // A crash cut a newer checkpoint.
    const newer = torn.replace(`\n${lastSize}\n`, `\n${lastSize + 1}\n`);
    writeFileSync(file, `${written}\n${newer.slice(0, kept)}`);
    execFileSync('sh', ['-e', '-c', snippet], { cwd: folder });
    const replaced = readFileSync(file, 'utf8');
    t.same([sizesIn(replaced, organizationId), sizesIn(replaced, 'installation')], [[lastSize], [1]]);
    t.equal(statSync(file).mode & 0o777, 0o600);
  }
  const next = await checkpointingOf(t, service, { file });
  t.same(await next.checkpoints.signChanged(), [], 'the new file has the last checkpoints');
  await next.close();
});

t.test('an unusable checkpoint file is reported at the start', async (t) => {
  const service = await startService(t, { keyring });
  const folder = scratchFolder(t);
  const open = (file: string, ring = keyring) => checkpointingOf(t, service, { file, keyring: ring });
  await t.rejects(open(path.join(folder, 'no/such/folder')), {
    name: 'CheckpointFileError',
    message: /CHECKPOINT_FILE .*no\/such\/folder cannot be written \(ENOENT.*Create its folder/,
  });
  await t.rejects(open(folder), { name: 'CheckpointFileError', message: /EISDIR/ });

  const file = path.join(folder, 'checkpoints');
  const { checkpoints, close } = await open(file);
  await checkpoints.signChanged();
  await close();
  const text = readFileSync(file, 'utf8');
  const [size = 0] = sizesIn(text, service.organizationId);
  writeFileSync(file, text.replace(`\n${size}\n`, `\n${size + 1}\n`));
  await t.rejects(open(file), {
    name: 'CheckpointFileError',
    message: /the checkpoint of .* has a wrong signature.*restore the file/,
  });

  writeFileSync(file, `${text}\nrubbish\n`);
  chmodSync(file, 0o644);
  const retired = await open(file, keyringOf('other'));
  t.equal(statSync(file).mode & 0o777, 0o600);
  t.match(
    retired.lines.join(''),
    /"torn":1,"unknownKeys":2/,
    'a checkpoint of a removed entry is reported, and accepted',
  );
  await retired.checkpoints.signChanged();
  t.same(sizesIn(readFileSync(file, 'utf8'), service.organizationId), [size, size], 'the new key signs it again');
});

t.test('replicas with separate files sign the same checkpoints and do not disturb each other', async (t) => {
  const service = await startService(t, { keyring });
  const { organizationId } = service;
  const folder = scratchFolder(t);
  const files = ['one', 'two', 'three'].map((name) => path.join(folder, name));
  const replicas = await Promise.all(files.map((file) => checkpointingOf(t, service, { file, everyMs: 5 })));
  for (const { checkpointing } of replicas) checkpointing.start();
  for (let round = 1; round <= 20; round++) {
    await Promise.all([change(service, round), ...replicas.map(({ checkpoints }) => checkpoints.sign(organizationId))]);
  }
  for (const { close } of replicas) await close();
  const notes = new Map<number, Set<string>>();
  for (const file of files) {
    const text = readFileSync(file, 'utf8');
    const sizes = sizesIn(text, organizationId);
    t.same(
      sizes,
      [...new Set(sizes)].sort((one, other) => one - other),
      'sizes only grow, without duplicates',
    );
    for (const note of text.split(/\n\n(?=latchkey)|^\n/)) {
      const [size] = sizesIn(note, organizationId);
      if (size !== undefined) notes.set(size, (notes.get(size) ?? new Set()).add(note.trim()));
    }
  }
  t.ok(
    [...notes.values()].every((same) => same.size === 1),
    'the same head has the same note everywhere',
  );
  for (const { checkpoints } of replicas) t.equal(checkpoints.refused(), 0);
});

t.test('checkpoints are sent to a receiver, and a failed one is sent with the next', async (t) => {
  const service = await startService(t, { keyring });
  const { organizationId } = service;
  let status = 503;
  const receiver = await listenHttp(t, (response) => void response.writeHead(status).end('x'.repeat(100_000)));
  const url = `http://user:p%40ss@127.0.0.1:${receiver.port}/take?from=here`;
  const { checkpointing, checkpoints, lines } = await checkpointingOf(t, service, { url, everyMs: 20 });
  checkpointing.start();
  await eventually(async () => receiver.arrived.length >= 3);
  t.match(lines.join(''), /"level":40.*the server answered with 503.*will send them with the next/);
  t.notMatch(lines.join(''), /p@ss|p%40ss|take/, 'possible secrets in the URL are not logged');
  await change(service, 3);
  status = 204;
  const isThere = async () => {
    const body = receiver.arrived.at(-1)?.body.toString() ?? '';
    return sizesIn(body, organizationId).length === 1 && lines.some((line) => line.includes('were sent')) && body;
  };
  await eventually(isThere);
  const { method, url: requestedUrl, headers } = receiver.arrived.at(-1) ?? {};
  t.match(
    { method, requestedUrl, headers },
    {
      method: 'POST',
      requestedUrl: '/take?from=here',
      headers: {
        'content-type': 'text/plain; charset=utf-8',
        authorization: `Basic ${Buffer.from('user:p@ss').toString('base64')}`,
      },
    },
  );
  const note = await checkpoints.sign(organizationId);
  await eventually(async () => receiver.arrived.some(({ body }) => body.toString().includes(note)));
});

t.test('a receiver that hangs or redirects delays neither signing nor shutdown', async (t) => {
  const service = await startService(t, { keyring });
  const { organizationId } = service;
  const hanging = await listenHttp(t, () => undefined);
  const one = await checkpointingOf(t, service, { url: `http://127.0.0.1:${hanging.port}/` });
  one.checkpointing.start();
  await eventually(async () => hanging.arrived.length === 1);
  await change(service, 4);
  t.match(await one.checkpoints.sign(organizationId), organizationId, 'requests are answered while the receiver hangs');
  const startedAt = performance.now();
  await one.close();
  t.ok(performance.now() - startedAt < 4_000, 'shutdown does not wait for the receiver');

  const redirectTarget = await listenHttp(t);
  const redirecting = await listenHttp(
    t,
    (response) => void response.writeHead(307, { location: `http://127.0.0.1:${redirectTarget.port}/` }).end(),
  );
  const two = await checkpointingOf(t, service, { url: `http://127.0.0.1:${redirecting.port}/` });
  two.checkpointing.start();
  await eventually(async () => two.lines.some((line) => line.includes('could not be sent')));
  t.equal(redirectTarget.connections(), 0);
});

t.test('without a database nothing is signed, and the service continues', async (t) => {
  const service = await startService(t, { keyring });
  const { urls, organizationId } = service;
  const { checkpointing, checkpoints, lines } = await checkpointingOf(t, service, { everyMs: 20 });
  await dbQuery(urls.owner, `revoke select on history_heads from ${roleOf(urls.app)}`);
  checkpointing.start();
  await eventually(async () => lines.filter((line) => line.includes('Latchkey will retry')).length >= 2);
  await dbQuery(urls.owner, `grant select on history_heads to ${roleOf(urls.app)}`);
  await eventually(async () => lines.some((line) => line.includes(`latchkey/${organizationId}`)));
  t.equal(checkpoints.refused(), 0);
});

t.test('a checkpoint that cannot be stored is not returned', async (t) => {
  const service = await startService(t, { keyring });
  const { organizationId } = service;
  const { checkpoints, close } = await checkpointingOf(t, service, { file: '/dev/full' }).catch(() => ({
    checkpoints: undefined,
    close: async () => undefined,
  }));
  if (checkpoints === undefined) return t.pass('this system has no /dev/full, or no right to it');
  await t.rejects(checkpoints.sign(organizationId), { code: 'ENOSPC' });
  await t.rejects(checkpoints.signChanged(), { code: 'ENOSPC' });
  return close();
});

t.test('the service signs at its start and at its end', async (t) => {
  const text = keyringText('evidence');
  const service = await startService(t, { keyring: parseKeyring(text) });
  const { urls, organizationId, admin } = service;
  const file = path.join(scratchFolder(t), 'checkpoints');
  const env = { DATABASE_URL: urls.app, LATCHKEY_KEYRING: text, PORT: '0', CHECKPOINT_FILE: file };
  const process = runEntry(t, 'server.ts', [], { env });
  await process.until(/Server listening at/);
  const sizes = () => sizesIn(readFileSync(file, 'utf8'), organizationId);
  await eventually(async () => sizes().length === 1);
  const [size = 0] = sizes();
  await change({ ...service, admin }, 9);
  process.child.kill('SIGTERM');
  t.same(await process.exited, { code: 0, signal: null });
  t.same(sizes(), [size, size + 1]);

  appendFileSync(file, 'a tear');
  const unusable = runEntry(t, 'server.ts', [], { env: { ...env, CHECKPOINT_FILE: '/no/such/folder/file' } });
  t.equal((await unusable.exited).code, 78);
  t.match(unusable.output(), /^latchkey: CHECKPOINT_FILE \/no\/such\/folder\/file cannot be written/m);
  const killed = runEntry(t, 'server.ts', [], { env });
  await killed.until(/CHECKPOINT_FILE contains incomplete checkpoints/);
  killed.child.kill('SIGKILL');
  t.match(await killed.exited, { signal: 'SIGKILL' });
});
