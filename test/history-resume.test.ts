import { writeFileSync } from 'node:fs';
import path from 'node:path';
import type { Test } from 'tap';
import { type Keyring, parseKeyring } from '../src/crypto/keyring.ts';
import { confirmInstallation } from '../src/database/installation.ts';
import { resumeVerification } from '../src/history/resume.ts';
import { readPoint, storePoint } from '../src/history/verified-point.ts';
import { verifyChain } from '../src/history/verify.ts';
import { dayMs, minuteMs } from '../src/lib/durations.ts';
import { type Json, startService, type TestService } from './support/app.ts';
import { dbQuery } from './support/database.ts';
import { dbAddEvents, dbTamper, inChain, noteOf, rehashFrom, scratchFolder } from './support/histories.ts';
import { keyringOf, keyringText } from './support/keyrings.ts';
import { runEntry } from './support/process.ts';
import { holdTransaction, untilBlocked } from './support/sessions.ts';
import { t } from './support/tap.ts';

// Most attackers here have full access to the database. A verification that resumes must still find what it promises.

t.test('a chain can be verified from a known event on', async (t) => {
  const { client, urls, organizationId: chain } = await startService(t);
  await dbAddEvents(urls.superuser, chain, 600);
  const whole = await verifyChain(client.db, chain);
  const [start] = await dbQuery(urls.app, 'select hash from history where chain = $1 and sequence = 300', [chain]);
  const from = { sequence: 300, hash: start?.['hash'] as Buffer };
  await dbTamper(urls.superuser, `delete from history where chain = '${chain}' and sequence < 300`);

  t.same(await verifyChain(client.db, chain, { from }), { ...whole, verifiedFrom: 301 }, 'earlier events are not read');
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
  t.match(await verifyChain(client.db, chain, { from: end }), { events: whole.events, head: whole.head, flaws: [] });
  const checkpoints = [
    { chain, size: 300, hash: other.hash },
    { chain, size: 400, hash: other.hash },
  ];
  t.match(await verifyChain(client.db, chain, { from, checkpoints }), {
    flaws: [{ firstSequence: 1, lastSequence: 400, reason: /differ from a signed checkpoint/ }],
  });
});

const tamper = ({ urls, organizationId }: TestService, statements: string) =>
  dbTamper(urls.superuser, inChain(organizationId, statements));

const replaceIn = (sequence: number, text: string, by: string) =>
  `update history set canonical = replace(canonical, '${text}', '${by}') where chain = c and sequence = ${sequence};`;
const edit = (sequence: number) => replaceIn(sequence, 'ada@', 'eve@');
const repair = (sequence: number) => replaceIn(sequence, 'eve@', 'ada@');

/** A service with a history of 300 events that was verified, and 4 more. */
async function startVerified(t: Test, overrides: Parameters<typeof startService>[1] = {}) {
  const service = await startService(t, { keyring: keyringOf('evidence'), ...overrides });
  const { admin, urls, organizationId: chain } = service;
  const [head] = await dbQuery(urls.app, 'select sequence::int from history_heads where chain = $1', [chain]);
  await dbAddEvents(urls.superuser, chain, 300 - Number(head?.['sequence']));
  const verify = async (query = ''): Promise<Json> => (await admin.get(`/v1/history/verify${query}`)).body;
  const grow = async () => {
    for (let requests = 1; requests <= 4; requests++)
      await admin.put('/v1/rate-limit', { requests, windowSeconds: 60 });
  };
  const first = await verify();
  await grow();
  const points = (sql: string) => dbQuery(urls.app, sql.replaceAll(':chain', `'${chain}'`));
  /** @returns a function that replaces the row by the present one */
  const savePoint = async () => {
    const [saved] = await points('select row_to_json(p)::text as row from verified_points p where chain = :chain');
    return () =>
      dbQuery(
        urls.superuser,
        `delete from verified_points where chain = '${chain}';
         insert into verified_points select * from json_populate_record(null::verified_points, '${saved?.['row']}')`,
      );
  };
  return { ...service, first, verify, grow, points, savePoint };
}

const whole = { valid: true, verifiedFrom: 1, verifiedPointFlaw: null };

t.test('a verification continues where the last one ended, and the full one reads everything', async (t) => {
  const service = await startVerified(t);
  const { verify, first, grow } = service;
  t.match(first, { ...whole, events: 300, fullyVerifiedAt: /^20/ });
  await tamper(service, edit(5));
  const resumed = await verify();
  t.match(resumed, { valid: true, events: 304, verifiedFrom: 301, fullyVerifiedAt: first.fullyVerifiedAt });
  t.equal((await verify()).verifiedFrom, 305, 'nothing is left to read');
  await grow();
  await tamper(service, edit(307));
  t.match(
    await verify(),
    { valid: false, events: 306, firstBadSequence: 307, verifiedFrom: 305 },
    'new events are read',
  );
  t.match(
    await verify(),
    { valid: false, events: 4, firstBadSequence: 5, verifiedFrom: 1, fullyVerifiedAt: null },
    'after a flaw everything is read',
  );

  await tamper(service, repair(5) + repair(307));
  const repaired = await verify();
  t.match(repaired, { ...whole, events: 308 });
  t.ok(repaired.fullyVerifiedAt > first.fullyVerifiedAt);
  t.equal((await verify()).verifiedFrom, 309);
  await tamper(service, edit(5));
  t.equal((await verify()).valid, true);
  t.match(await verify('?full=true'), { valid: false, events: 4, firstBadSequence: 5, verifiedFrom: 1 });
  t.match(await verify(), { valid: false, firstBadSequence: 5 }, 'what a full verification found stays found');
});

t.test('after seven days everything is read', async (t) => {
  const service = await startVerified(t);
  const { verify, later } = service;
  await tamper(service, edit(5));
  later(7 * dayMs - minuteMs);
  t.match(await verify(), { valid: true, verifiedFrom: 301 });
  later(minuteMs);
  t.match(await verify(), { valid: false, events: 4, firstBadSequence: 5, verifiedFrom: 1 });
});

t.test('a clock that was set back does not make a verification newer than it is', async (t) => {
  const service = await startVerified(t);
  await tamper(service, edit(5));
  service.later(-dayMs);
  t.match(await service.verify(), { valid: false, firstBadSequence: 5 });
});

t.test('what cannot have been written by Latchkey hides nothing, and is reported until it is deleted', async (t) => {
  const forgeries: Array<[what: string, sql: string]> = [
    [
      'another event',
      `update verified_points set sequence = 304, hash =
      (select hash from history where chain = :chain and sequence = 304) where chain = :chain`,
    ],
    ['another hash', `update verified_points set hash = sha256('x') where chain = :chain`],
    ['a later verification', `update verified_points set verified_at = now() + interval '1 day' where chain = :chain`],
    [
      'a later full verification',
      `update verified_points set fully_verified_at = now() + interval '1 day' where chain = :chain`,
    ],
    ['no full verification', 'update verified_points set fully_verified_at = null where chain = :chain'],
    ['an endless time', `update verified_points set fully_verified_at = 'infinity' where chain = :chain`],
    ['another MAC', `update verified_points set mac = sha256('x') where chain = :chain`],
    ['no MAC', `update verified_points set mac = '' where chain = :chain`],
    [
      'the row of another chain',
      `update verified_points set (sequence, hash, verified_at, fully_verified_at, mac) =
        (select sequence, hash, verified_at, fully_verified_at, mac from verified_points where chain = 'installation')
       where chain = :chain`,
    ],
  ];
  const service = await startVerified(t);
  const { operator, verify, points, savePoint } = service;
  t.match((await operator.get('/v1/history/verify')).body, whole);
  const putBack = await savePoint();
  await tamper(service, edit(5));
  for (const [what, sql] of forgeries) {
    await points(sql);
    const found = { valid: false, events: 4, firstBadSequence: 5, verifiedFrom: 1, fullyVerifiedAt: null };
    const reported = { verifiedPointFlaw: /changed or written without the keyring.*delete from verified_points/ };
    t.match(await verify(), { ...found, ...reported }, what);
    t.match(await verify('?full=true'), { ...found, ...reported }, `${what}, in a full verification`);
    await tamper(service, repair(5));
    const onlyReported = { valid: false, events: 304, flaws: [], ...reported };
    t.match(await verify(), onlyReported, `${what}, and a sound chain`);
    t.match(await verify('?full=true'), onlyReported, `${what}, again`);
    await tamper(service, edit(5));
    await putBack();
    t.match(await verify(), { valid: true, verifiedFrom: 301 }, 'the genuine row is accepted');
    await putBack();
  }
});

t.test('an older or missing row only means more work', async (t) => {
  const { urls, verify, grow, savePoint } = await startVerified(t);
  const putBack = await savePoint();
  t.equal((await verify()).verifiedFrom, 301);
  await grow();
  t.equal((await verify()).verifiedFrom, 305);
  await putBack();
  t.match(await verify(), { valid: true, verifiedFrom: 301, events: 308 });
  await dbQuery(urls.superuser, 'delete from verified_points');
  t.match(await verify(), { ...whole, events: 308 });
});

t.test('what contradicts the verified point is found, and stays found', async (t) => {
  const cutTo = (keep: number) =>
    `delete from history where chain = c and sequence > ${keep};
     update history_heads set sequence = ${keep}, hash = (select hash from history where chain = c and sequence = ${keep})
       where chain = c;`;
  const table: Array<[what: string, sql: string, found: Json]> = [
    [
      'a cut tail, as in an old backup',
      cutTo(290),
      {
        events: 290,
        flaws: [{ firstSequence: 291, lastSequence: 300, reason: /^300 events were verified at 20.*tail was cut/ }],
      },
    ],
    [
      'a cut tail without its head',
      'delete from history where chain = c and sequence > 290;',
      { events: 290, firstBadSequence: 291 },
    ],
    [
      'a cut of everything',
      'delete from history where chain = c; delete from history_heads where chain = c;',
      { events: 0, head: null, flaws: [{ firstSequence: 1, lastSequence: 300 }] },
    ],
    [
      'a rewrite of the whole chain',
      `update history set canonical = replace(canonical, 'ada@', 'eve@') where chain = c; ${rehashFrom(1)};`,
      {
        flaws: [
          {
            firstSequence: 1,
            lastSequence: 300,
            reason: /^the events up to 300 differ from those that were verified at 20.*rewritten/,
          },
        ],
      },
    ],
    [
      'a rewrite from an event on',
      `${edit(200)} ${rehashFrom(200)};`,
      { flaws: [{ firstSequence: 1, lastSequence: 300 }] },
    ],
    ['an edit after the point', edit(302), { events: 301, firstBadSequence: 302, verifiedFrom: 301 }],
    [
      'a head with another hash',
      `update history_heads set hash = sha256('x') where chain = c;`,
      { flaws: [{ firstSequence: 304, reason: /hash of the chain's head differs/ }], verifiedFrom: 301 },
    ],
    [
      'an older head',
      `update history_heads set sequence = 290, hash = (select hash from history where chain = c and sequence = 290)
       where chain = c;`,
      { firstBadSequence: 291 },
    ],
  ];
  for (const [what, sql, found] of table) {
    await t.test(what, async (t) => {
      const service = await startVerified(t);
      await tamper(service, sql);
      t.match(await service.verify(), { valid: false, ...found }, 'by the next verification');
      delete found.verifiedFrom;
      const again = { valid: false, verifiedFrom: 1, fullyVerifiedAt: null, ...found };
      t.match(await service.verify(), again, 'by the one after that');
      t.match(await service.verify('?full=true'), again, 'by a full one');
    });
  }
});

t.test('a row of a keyring entry that is gone is not used, even if the entry is listed as lost', async (t) => {
  const service = await startVerified(t);
  const { client, clock, keyring, organizationId: chain } = service;
  const onUnstored = (error: unknown) => t.error(error as Error);
  const verifyWith = (keyring: Keyring) =>
    resumeVerification({ db: client.db, clock, keyring, onUnstored }, chain, { isFull: false });
  const isWhole = { verifiedFrom: 1, pointFlaw: undefined, flaws: [] };
  const lost = parseKeyring(keyringText('second'), [keyring.primary.id]);
  t.match(await verifyWith(lost), isWhole);
  t.match(await verifyWith(keyring), isWhole, 'the row is now of the other entry');
  t.match(await verifyWith(keyringOf('third', 'evidence')), { verifiedFrom: 305 }, 'a secondary entry is enough');
  t.match(await verifyWith(keyring), isWhole, 'the row is now of the new primary entry');
});

t.test('of two verifications at once, the later result does not replace the earlier one', async (t) => {
  const service = await startVerified(t);
  const { client, clock, keyring, organizationId: chain, verify } = service;
  const deps = { db: client.db, clock, keyring };
  const { point, mac } = await readPoint(deps, chain);
  if (point === undefined) throw new Error('the chain has no point');
  await tamper(service, edit(5));
  t.match(await verify('?full=true'), { valid: false, firstBadSequence: 5 });
  await storePoint(deps, point, mac);
  t.match(await verify(), { valid: false, firstBadSequence: 5 });
  await storePoint(deps, point, null);
  t.match(await verify(), { valid: false, firstBadSequence: 5 }, 'nor one that found no row');
});

t.test('a flaw stays found, also if another verification has stored a sound result meanwhile', async (t) => {
  const service = await startVerified(t);
  const { client, clock, keyring, organizationId: chain, urls, verify } = service;
  const deps = { db: client.db, clock, keyring };
  const { point, mac } = await readPoint(deps, chain);
  if (point === undefined) throw new Error('the chain has no point');
  await tamper(service, edit(5));
  for (const replaced of [mac, null]) {
    if (replaced === null) await dbQuery(urls.superuser, 'delete from verified_points where chain = $1', [chain]);
    const blocker = await holdTransaction(t, urls.superuser, 'lock table history_archives in access exclusive mode');
    const whole = verify('?full=true');
    await untilBlocked(urls.superuser);
    t.ok(await storePoint(deps, { ...point, verified_at: new Date() }, replaced));
    await blocker.end();
    t.match(await whole, { valid: false, firstBadSequence: 5 });
    t.match(await verify(), { valid: false, firstBadSequence: 5 }, 'the flaw is remembered');
  }
});

t.test('a result that cannot be stored is still returned', async (t) => {
  const service = await startVerified(t);
  const { urls, verify, logLines } = service;
  await dbQuery(urls.owner, `revoke insert, update on verified_points from ${new URL(urls.app).username}`);
  t.match(await verify(), { valid: true, events: 304, verifiedFrom: 301 });
  t.match(await verify(), { valid: true, events: 304, verifiedFrom: 301 });
  t.match(logLines.join(''), 'The result of the verification is not stored.');
});

t.test('audit verify resumes with the keyring, and reads everything without it', async (t) => {
  const service = await startVerified(t);
  const { urls, organizationId: chain, points, app, client, keyring } = service;
  await confirmInstallation(client.db, { tokenPrefix: 'lk', keyring });
  const withKeyring = { DATABASE_URL: urls.app, LATCHKEY_KEYRING: keyringText('evidence') };
  const audit = async (args: string[], env: NodeJS.ProcessEnv = withKeyring) => {
    const process = runEntry(t, 'cli/latchkey.ts', ['audit', 'verify', '--organization', chain, ...args], { env });
    return { ...(await process.exited), output: process.output() };
  };
  const resumed = new RegExp(`^ok {6}${chain}: 304 events, .*, verified from event 301 on \\(all at 20.*Z\\)\\.$`, 'm');
  const complete = new RegExp(`^ok {6}${chain}: 304 events, the last with the hash [0-9a-f]{64}\\.$`, 'm');
  const found = new RegExp(`^wrong {3}${chain}: the first bad event is 5: the event's text`, 'm');
  t.match(await audit([], { DATABASE_URL: urls.app }), { code: 0, output: complete });
  t.match(await audit([], { ...withKeyring, LATCHKEY_KEYRING: keyringText('other') }), { code: 0, output: complete });
  t.match(await points('select sequence::int from verified_points'), [{ sequence: 300 }], 'neither stored a result');
  const putBack = await service.savePoint();
  t.match(await audit([]), { code: 0, output: resumed });
  t.match(await points('select sequence::int from verified_points'), [{ sequence: 304 }]);

  await putBack();
  await tamper(service, edit(5));
  t.match(await audit([]), { code: 0, output: resumed });
  await putBack();
  t.match(await audit(['--full']), { code: 1, output: found });
  t.match(await audit([]), { code: 1, output: found });
  await putBack();
  await dbQuery(urls.app, `update verified_points set sequence = 299`);
  t.match(await audit([]), { code: 1, output: found });
  t.match((await audit([])).output, /^wrong {3}org_.*: the row of verified_points, .* written without the keyring/m);
  await tamper(service, repair(5));
  t.match(await audit([]), { code: 1, output: complete }, 'a forged row alone is an error');
  await putBack();

  const hashes = await dbQuery(urls.app, 'select sequence::int as size, hash from history where chain = $1', [chain]);
  const notes = hashes.flatMap(({ size, hash }) =>
    [10, 300, 304].includes(size as number) ? [noteOf({ chain, size: size as number, hash: hash as Buffer })] : [],
  );
  const folder = scratchFolder(t);
  const file = (name: string, content: string) => {
    writeFileSync(path.join(folder, name), content);
    return path.join(folder, name);
  };
  const publicKey = (await app.inject('/.well-known/latchkey-history-key')).body;
  const compared = ['--checkpoint', file('checkpoints', notes.join('\n')), '--public-key', file('key', publicKey)];
  t.match((await audit(compared)).output, /verified from event 301 on .*, as in 3 checkpoints\.$/m);
  await putBack();
  await tamper(service, `update history set hash = sha256('x') where chain = c and sequence = 10;`);
  t.match(await audit([]), { code: 0 });
  await putBack();
  t.match(await audit(compared), {
    code: 1,
    output: /first bad event is 1: the events up to 10 differ from a signed checkpoint/,
  });

  await putBack();
  await dbTamper(urls.superuser, 'delete from history; delete from history_heads');
  const all = runEntry(t, 'cli/latchkey.ts', ['audit', 'verify'], { env: withKeyring });
  t.match(await all.exited, { code: 1 });
  t.match(all.output(), `wrong   ${chain}: the first bad event is 1: 300 events were verified at`, 'no chain is left');
});
