import { spawnSync } from 'node:child_process';
import { readFileSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { confirmInstallation } from '../src/database/installation.ts';
import { exportChain } from '../src/history/export.ts';
import { readHead } from '../src/history/store.ts';
import { startService, type TestService } from './support/app.ts';
import { archivist } from './support/archives.ts';
import { dbQuery } from './support/database.ts';
import { dbAddEvents, findByLatchkey, findByScript, noteOf } from './support/histories.ts';
import { keyringOf, keyringText } from './support/keyrings.ts';
import { compiled, runEntry } from './support/process.ts';
import { differencesIn } from './support/state-differences.ts';
import { t } from './support/tap.ts';

// Old events are moved to files, and the chain stays verifiable.

/** The text of a GET reply that is not JSON. */
async function read({ app }: TestService, token: string, url: string): Promise<string> {
  return (await app.inject({ url, headers: { authorization: `Bearer ${token}` } })).body;
}

t.test('archived events are in a file, and everything else works as before', async (t) => {
  const service = await startService(t, { keyring: keyringOf('evidence') });
  const { admin, operator, organizationId: chain, urls, client, keyring } = service;
  await confirmInstallation(client.db, { tokenPrefix: 'lk', keyring });
  const { body: old } = await admin.post('/v1/keys', { name: 'Old', metadata: { team: 'a' } });
  const { body: partner } = await admin.post('/v1/partners', { email: 'p@p.example', permissions: ['read'] });
  await admin.post(`/v1/keys/${old.id}/reveal`, { reason: 'A test' });
  const whole = await read(service, admin.token, '/v1/history/export');
  const note = await read(service, admin.token, '/v1/history/checkpoint');
  const { archive } = archivist(t, service);
  const first = await archive(chain, note);
  const lines = whole.trimEnd().split('\n');
  t.equal(first.last_sequence, lines.length - 1, 'the last event stays');
  t.equal(
    readFileSync(first.file, 'utf8'),
    `${lines.slice(0, -1).join('\n')}\n`,
    'the file is the beginning of the export',
  );
  t.same(await dbQuery(urls.app, 'select sequence::int from history where chain = $1', [chain]), [
    { sequence: lines.length },
  ]);
  t.match((await admin.get('/v1/history/verify')).body, {
    valid: true,
    events: lines.length,
    archivedEvents: lines.length - 1,
    flaws: [],
    stateDifferences: [],
  });
  t.match((await operator.get('/v1/history')).body.data[0], {
    action: 'history.archived',
    actor: { type: 'system', id: 'archive' },
    details: {
      archiveId: first.id,
      chain,
      firstSequence: 1,
      lastSequence: lines.length - 1,
      head: first.hash.toString('hex'),
    },
  });

  const rest = await read(service, admin.token, '/v1/history/export');
  t.equal(rest, `${lines.at(-1)}\n`, 'the export begins after the archive');
  t.equal(await read(service, admin.token, '/v1/history/export?after=2'), rest);
  t.same(
    (await admin.get('/v1/history')).body.data.map((event: { sequence: number }) => event.sequence),
    [lines.length],
  );
  t.match(
    (await admin.get(`/v1/keys/${old.id}/history`)).body,
    { data: [] },
    'a record without stored events has an empty history',
  );
  t.match((await admin.get(`/v1/partners/${partner.id}/history`)).body, { data: [] });
  t.equal((await admin.get('/v1/keys/key_01k9s3v5wqe8n8x4r2m6t7yb0c/history')).status, 404);
  t.match((await admin.get(`/v1/keys/${old.id}/viewers`)).body.data, []);

  await admin.patch(`/v1/keys/${old.id}`, { metadata: { team: 'b' } });
  await admin.post(`/v1/partners/${partner.id}/suspend`);
  t.same(await differencesIn(service), [], 'states continue from the archive');
  const laterNote = await read(service, admin.token, '/v1/history/checkpoint');
  const second = await archive(chain, laterNote);
  t.equal(second.first_sequence, first.last_sequence + 1);
  await admin.patch(`/v1/keys/${old.id}`, { name: 'Renamed' });
  t.same(await differencesIn(service), []);

  const stored = await read(service, admin.token, '/v1/history/export');
  const together = Buffer.concat([readFileSync(first.file), readFileSync(second.file), Buffer.from(stored)]);
  t.match(await findByLatchkey(together), { firstBad: undefined }, 'files and export are the whole history');
  t.match(findByScript(t, [together])[0], { firstBad: undefined });

  const env = { DATABASE_URL: urls.app, LATCHKEY_KEYRING: keyringText('evidence') };
  const audit = async (args: string[], settings: NodeJS.ProcessEnv = env) => {
    const process = runEntry(t, 'cli/latchkey.ts', ['audit', 'verify', '--organization', chain, ...args], {
      env: settings,
    });
    return { code: (await process.exited).code, output: process.output() };
  };
  const alone = await audit([]);
  t.equal(alone.code, 0, alone.output);
  t.match(
    alone.output,
    new RegExp(`^note {4}${chain}: events 1 to ${second.last_sequence} are archived, and were not read`, 'm'),
  );
  const files = ['--archive', second.file, first.file];
  const checkpoints = path.join(path.dirname(first.file), 'checkpoints');
  writeFileSync(checkpoints, `${note}\n${laterNote}`);
  for (const settings of [env, { DATABASE_URL: urls.app }]) {
    const verified = await audit(files, settings);
    t.equal(verified.code, 0, verified.output);
    t.match(verified.output, /are archived, and were verified in the given files/);
  }
  t.match(await audit([...files, '--checkpoint', checkpoints]), { code: 0, output: /as in 2 checkpoints/ });
  const unkeyed = await audit([], { DATABASE_URL: urls.app });
  t.match(unkeyed, { code: 1, output: /without the keyring the archive cannot be authenticated/ });
  const { name, head } = { name: path.join(path.dirname(first.file), 'exact'), head: second.last_sequence };
  for (const [hash, result] of [
    [second.hash, { code: 0, output: /, verified from event \d+ on .*, as in 1 checkpoint\.$/m }],
    [first.hash, { code: 1, output: new RegExp(`the events up to ${head} differ from a signed checkpoint`) }],
  ] as const) {
    await admin.get('/v1/history/verify');
    writeFileSync(name, noteOf({ chain, size: head, hash }));
    t.match(await audit(['--checkpoint', name]), result, 'a checkpoint of the last archived event');
  }
  const foreign = path.join(path.dirname(first.file), 'foreign');
  writeFileSync(foreign, await read(service, operator.token, '/v1/history/export'));
  t.match(await audit(['--archive', foreign]), { code: 1, output: /foreign has events of installation/ });
  t.match(await audit(['--archive', second.file]), {
    code: 1,
    output: /first bad event is 1: the event found here has sequence number/,
  });
  const text = readFileSync(first.file, 'utf8');
  writeFileSync(first.file, text.replace('Old', 'New'));
  t.match(await audit(files), { code: 1, output: /the event's text does not match its hash/ });
  writeFileSync(first.file, `${text}\n`);
  t.match(await audit(files), { code: 1, output: /differs from the file that was archived/ });
  const piped = spawnSync(process.execPath, [compiled('src/cli/latchkey.ts'), 'audit', 'verify', '--export', '-'], {
    input: together,
    encoding: 'utf8',
  });
  t.match(piped, { status: 0 });
});

t.test('an export breaks off if events are archived before it has read them', async (t) => {
  const service = await startService(t, { keyring: keyringOf('evidence') });
  const { admin, client, organizationId: chain, urls } = service;
  await dbAddEvents(urls.superuser, chain, 600);
  const { sequence: last } = await readHead(client.db, chain);
  const begun = exportChain(client.db, chain, last);
  const waiting = exportChain(client.db, chain, last, 1);
  t.match((await begun.next()).value, /"sequence":250[^0-9]/);
  await archivist(t, service).archive(chain, await read(service, admin.token, '/v1/history/checkpoint'));
  await t.rejects(begun.next(), { message: /^Events 251 to \d+ of org_.* were archived while they were exported$/ });
  await t.rejects(waiting.next(), { message: /^Events 2 to / });
  t.match((await exportChain(client.db, chain, last, last - 1).next()).value, new RegExp(`"sequence":${last}[^0-9]`));
});
