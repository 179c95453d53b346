import { existsSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import type { Test } from 'tap';
import { planArchive } from '../src/history/archives/archiving.ts';
import { removeStaleStates } from '../src/history/archives/states.ts';
import { startService, type TestService } from './support/app.ts';
import { archivist, dbBackdate } from './support/archives.ts';
import { dbQuery } from './support/database.ts';
import { checkpointsIn, dbAddEvents, scratchFolder } from './support/histories.ts';
import { keyringOf, keyringText } from './support/keyrings.ts';
import { eventually, runEntry } from './support/process.ts';
import { holdTransaction, untilBlocked } from './support/sessions.ts';
import { t } from './support/tap.ts';

// `latchkey history archive` may be killed at any moment, and runs beside the service.

async function noteOf({ admin }: TestService): Promise<string> {
  return (await admin.get('/v1/history/checkpoint')).body;
}

/** An organization whose history is a year old, and a checkpoint of it. @param more events that are added to the first ones */
async function startOld(t: Test, more = 0) {
  const service = await startService(t, { keyring: keyringOf('evidence') });
  const { admin, urls, organizationId: chain } = service;
  const { body: key } = await admin.post('/v1/keys', { name: 'Old' });
  if (more > 0) await dbAddEvents(urls.superuser, chain, more);
  await dbBackdate(urls.superuser, chain, 365);
  await admin.patch(`/v1/keys/${key.id}`, { name: 'Changed' });
  const folder = scratchFolder(t);
  const checkpoint = path.join(folder, 'checkpoint');
  writeFileSync(checkpoint, await noteOf(service));
  const file = path.join(folder, 'old.ndjson');
  const before = new Date(Date.now() - 100 * 86_400_000).toISOString().slice(0, 10);
  const args = ['--organization', chain, '--before', before, '--checkpoint', checkpoint, '--to', file];
  const env = {
    DATABASE_URL: urls.app,
    MIGRATION_DATABASE_URL: urls.owner,
    LATCHKEY_KEYRING: keyringText('evidence'),
  };
  const start = (more: string[] = [], given = args) =>
    runEntry(t, 'cli/latchkey.ts', ['history', 'archive', ...given, ...more], { env });
  const run = async (more: string[] = [], given = args) => {
    const process = start(more, given);
    return { code: (await process.exited).code, output: process.output() };
  };
  const verify = async () => (await admin.get('/v1/history/verify?full=true')).body;
  const last = 4 + more;
  return { service, chain, args, file, folder, start, run, verify, last };
}

/** What a run cannot do while another session holds the table of archives. */
const insertsArchive = 'insert into "history_archives"%';

const storedIn = async (url: string, chain: string) => {
  const [row] = await dbQuery(url, 'select min(sequence)::int as first, count(*)::int from history where chain = $1', [
    chain,
  ]);
  return row;
};

t.test('the command moves old events, and says what it would move', async (t) => {
  const { service, chain, file, folder, run, verify, last, args } = await startOld(t);
  const { urls, admin } = service;
  const dry = await run(['--dry-run']);
  t.match(dry, { code: 0, output: new RegExp(`^note {4}${chain}: events 1 to ${last} would be moved to `, 'm') });
  t.notOk(existsSync(file));
  t.match(await storedIn(urls.app, chain), { first: 1 }, 'a rehearsal changes nothing');

  const done = await run();
  t.match(done, {
    code: 0,
    output: new RegExp(`^ok {6}${chain}: events 1 to ${last} were moved to .*old\\.ndjson: \\d+ bytes`, 'm'),
  });
  t.same(await storedIn(urls.app, chain), { first: last + 1, count: 1 });
  t.equal(readFileSync(file, 'utf8').trimEnd().split('\n').length, last);
  t.match(await verify(), { valid: true, events: last + 1, archivedEvents: last });
  t.match(await run(), { code: 0, output: /no event before .* is left to archive/ }, 'a second run has nothing to do');
  t.match(await dbQuery(urls.app, 'select count(*)::int from history_archives'), [{ count: 1 }]);

  const forged = path.join(folder, 'forged');
  writeFileSync(forged, noteForOther(await noteOf(service)));
  await admin.patch('/v1/organization', { name: 'Changed' });
  t.match(await run(['--checkpoint', forged, '--to', `${file}.2`]), {
    code: 1,
    output: /The signature of a checkpoint of .* is invalid/,
  });
  t.notOk(existsSync(`${file}.2`));

  for (const [name, value, output] of [
    ['--before', '2026-13-40', /Must be a day such as/],
    ['--organization', 'nobody', /Must be the id of an organization/],
  ] as const) {
    t.match(await run([], [...args, name, value]), { code: 2, output });
  }
});

t.test('killed before the events are removed, a repeated run continues', async (t) => {
  const { service, chain, file, start, run, verify, last } = await startOld(t);
  const { urls } = service;
  const blocker = await holdTransaction(t, urls.superuser, 'lock table history_archives in share mode');
  const killed = start();
  await eventually(async () => existsSync(file));
  await untilBlocked(urls.superuser, insertsArchive);
  killed.child.kill('SIGKILL');
  await killed.exited;
  await blocker.end();
  t.match(await storedIn(urls.app, chain), { first: 1 }, 'the file is written, and nothing is removed');
  t.match(await verify(), { valid: true, events: last + 1, archivedEvents: 0 });

  const text = readFileSync(file, 'utf8');
  writeFileSync(file, text.slice(0, -1_000));
  t.match(await run(), { code: 1, output: /does not have exactly the events 1 to .* Nothing was removed/ });
  t.match(await storedIn(urls.app, chain), { first: 1 });
  writeFileSync(file, text);
  t.match(await run(), { code: 0 }, 'the file is used if it has exactly these events');
  t.equal(readFileSync(file, 'utf8'), text);
  t.match(await verify(), { valid: true, archivedEvents: last });
  t.same(
    await dbQuery(
      urls.app,
      'select distinct archive_id = (select id from history_archives) as current from history_archive_states',
    ),
    [{ current: true }],
    'states of the killed run are gone',
  );
});

t.test('killed before the first event is removed, a repeated run writes a lost file again', async (t) => {
  const { service, chain, args, file, folder, start, run, verify, last } = await startOld(t);
  const { urls } = service;
  const blocker = await holdTransaction(
    t,
    urls.superuser,
    `select from history where chain = '${chain}' and sequence = 1 for update`,
  );
  const killed = start();
  await eventually(async () => (await dbQuery(urls.app, 'select from history_archives')).length > 0);
  killed.child.kill('SIGKILL');
  await killed.exited;
  await blocker.end();
  t.match(await storedIn(urls.app, chain), { first: 1 });
  const text = readFileSync(file, 'utf8');
  rmSync(file);
  const other = path.join(folder, 'other.ndjson');
  t.match(await run([], [...args, '--to', other]), {
    code: 0,
    output: /events of an earlier run up to 4 were removed/,
  });
  t.equal(readFileSync(other, 'utf8'), text);
  t.match(await verify(), { valid: true, archivedEvents: last });
});

t.test('killed while events are removed, everything verifies, and a repeated run removes the rest', async (t) => {
  const { service, chain, args, file, folder, start, run, verify, last } = await startOld(t, 12_000);
  const { urls, admin } = service;
  const blocker = await holdTransaction(
    t,
    urls.superuser,
    `select from history where chain = '${chain}' and sequence = 7000 for update`,
  );
  const killed = start();
  await eventually(async () => Number((await storedIn(urls.app, chain))?.['first']) > 5_000, 60_000);
  killed.child.kill('SIGKILL');
  await killed.exited;
  t.match(await verify(), {
    valid: true,
    events: last + 1,
    archivedEvents: last,
    verifiedFrom: 5_001,
    stateDifferences: [],
  });
  t.equal((await admin.get('/v1/history?limit=1')).status, 200);
  await blocker.end();

  const other = args.map((given) => (given === file ? path.join(folder, 'other.ndjson') : given));
  t.match(await run([], other), {
    code: 1,
    output: /was stopped before it had removed all of them\. Give its file with --to/,
  });
  t.match(await run(), { code: 0, output: new RegExp(`events of an earlier run up to ${last} were removed`) });
  t.same(await storedIn(urls.app, chain), { first: last + 1, count: 1 });
  t.match(await verify(), { valid: true, events: last + 1, archivedEvents: last, verifiedFrom: last + 1 });
});

t.test('changes, verifications and exports go on while events are removed', async (t) => {
  const { service, chain, start, verify, last } = await startOld(t, 12_000);
  const { admin, app } = service;
  const archiving = start();
  let changes = 0;
  let verified = 0;
  let isDone = false;
  const until = async (act: () => Promise<unknown>) => {
    while (!isDone) await act();
  };
  const headers = { authorization: `Bearer ${admin.token}` };
  const work = Promise.all([
    until(async () => {
      changes += 1;
      t.equal((await admin.put('/v1/rate-limit', { requests: changes, windowSeconds: 60 })).status, 200);
    }),
    until(async () => {
      verified += 1;
      const verdict = await verify();
      t.match(verdict, { valid: true, flaws: [], stateDifferences: [] }, `verification ${verified}`);
    }),
    until(async () =>
      t.equal((await app.inject({ url: `/v1/history/export?after=${last}`, headers })).statusCode, 200),
    ),
  ]);
  const { code } = await archiving.exited;
  isDone = true;
  await work;
  t.equal(code, 0, archiving.output());
  t.ok(changes > 0 && verified > 0, `${changes} changes and ${verified} verifications`);
  t.match(await verify(), { valid: true, archivedEvents: last, events: last + 1 + changes });
  t.equal((await dbQuery(service.urls.app, 'select from history where chain = $1', [chain])).length, 1 + changes);
});

t.test('only one run works at a time', async (t) => {
  const { service, start, run } = await startOld(t);
  const blocker = await holdTransaction(t, service.urls.superuser, 'lock table history_archives in share mode');
  const first = start();
  await untilBlocked(service.urls.superuser, insertsArchive);
  t.match(await run(), { code: 1, output: /Another `latchkey history archive` is running/ });
  await blocker.end();
  t.equal((await first.exited).code, 0);
});

t.test('a run whose states were deleted by another one archives nothing', async (t) => {
  const service = await startService(t, { keyring: keyringOf('evidence') });
  const { admin, organizationId: chain, urls } = service;
  await admin.post('/v1/keys', { name: 'Old' });
  const { archive, transactor } = archivist(t, service);
  const note = await noteOf(service);
  const lockStates = 'lock table history_archive_states in';
  const other = await holdTransaction(t, urls.superuser, `${lockStates} row exclusive mode`);
  const first = archive(chain, note);
  first.catch(() => undefined);
  await untilBlocked(urls.superuser);
  await other.query('delete from history_archive_states; commit');
  await t.rejects(first, { message: /^Another run has deleted the states of this one\. Nothing was removed/ });
  t.match(await storedIn(urls.app, chain), { first: 1 });

  const { id } = await archive(chain, note);
  const count = async () =>
    Number(
      (await dbQuery(urls.app, 'select count(*) from history_archive_states where archive_id = $1', [id]))[0]?.[
        'count'
      ],
    );
  const states = await count();
  t.ok(states > 0);
  await dbQuery(urls.superuser, 'create table saved as select * from history_archives; delete from history_archives');
  await other.query(`begin; ${lockStates} share row exclusive mode; insert into history_archives select * from saved`);
  const removing = removeStaleStates(transactor.db);
  await untilBlocked(urls.superuser);
  await other.query('commit');
  await other.end();
  await removing;
  t.equal(await count(), states, 'states of an archive that is stored meanwhile stay');
});

t.test('events are archived only if they are old, proven, sound and not needed', async (t) => {
  const service = await startService(t, { keyring: keyringOf('evidence') });
  const { admin, organizationId: chain, urls } = service;
  const early = await noteOf(service);
  await admin.put('/v1/rate-limit', { requests: 2, windowSeconds: 60 });
  const note = await noteOf(service);
  const { archive, transactor } = archivist(t, service);
  const inDays = (days: number) => new Date(Date.now() + days * 86_400_000);
  await t.rejects(archive(chain, note, { before: inDays(280) }), {
    message: /^Events of the last 90 days are not archived/,
  });
  await t.rejects(archive(chain, ''), { message: /^No given checkpoint of org_.* covers event 3/ });
  await t.rejects(archive(chain, noteForOther(note)), {
    message: /^Event 1 of .* differ from a signed checkpoint of 4 events/,
  });
  t.equal(
    await planArchive({ transactor }, { chain, before: inDays(-1), checkpoints: checkpointsIn(note) }),
    undefined,
    'nothing is that old',
  );
  await t.resolves(
    planArchive({ transactor }, { chain, before: inDays(1), checkpoints: checkpointsIn(`${early}\n${note}`) }),
  );

  const { body: webhook } = await admin.post('/v1/webhooks', { url: 'http://127.0.0.1:9/hook', events: ['*'] });
  await admin.put('/v1/rate-limit', { requests: 3, windowSeconds: 60 });
  await admin.put('/v1/rate-limit', { requests: 4, windowSeconds: 60 });
  const later = await noteOf(service);
  await t.rejects(archive(chain, later), { message: /^Deliveries of webhooks still need some of these events/ });
  await dbQuery(urls.superuser, 'delete from webhook_deliveries where endpoint_id = $1', [webhook.id]);
  const { file } = await archive(chain, later);
  t.ok(existsSync(file));
  rmSync(file);
});

/** The same note with another hash. Its signature does not matter here. */
function noteForOther(note: string): string {
  const lines = note.split('\n');
  lines[2] = Buffer.alloc(32, 7).toString('base64');
  return lines.join('\n');
}

t.test('a new keyring entry can replace the one that authenticates an archive', async (t) => {
  const service = await startService(t, { keyring: keyringOf('k1') });
  const { admin, organizationId: chain, urls } = service;
  await admin.put('/v1/rate-limit', { requests: 2, windowSeconds: 60 });
  await archivist(t, service).archive(chain, await noteOf(service));
  const run = async (args: string[], keyring: string) => {
    const process = runEntry(t, 'cli/latchkey.ts', args, {
      env: { DATABASE_URL: urls.app, LATCHKEY_KEYRING: keyring },
    });
    return { code: (await process.exited).code, output: process.output() };
  };
  const verify = ['audit', 'verify', '--organization', chain];
  t.match(await run(verify, keyringText('k2')), { code: 1, output: /cannot be authenticated: the keyring lacks k1/ });
  const rekeyed = await run(['rekey'], keyringText('k2', 'k1'));
  t.match(rekeyed, { code: 0, output: /^1 archive of history was moved to k2\.$/m });
  t.match(rekeyed.output, /^Keyring entry k2 \(primary\): .*the MACs of 1 archive of history/m);
  t.match(await run(verify, keyringText('k2')), { code: 0, output: /^ok/m });

  await dbQuery(urls.owner, "update history_archives set last_sequence = last_sequence - 1, mac_keyring_id = 'k1'");
  t.match(await run(['rekey'], keyringText('k2', 'k1')), {
    code: 1,
    output: /archive_.* was not moved: its row was changed/,
  });
});
