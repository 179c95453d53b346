import type { Test } from 'tap';
import { canonicalJson } from '../src/domain/canonical-json.ts';
import { newId } from '../src/domain/ids.ts';
import { parseCheckpoint } from '../src/history/checkpoints/checkpoint.ts';
import { createCheckpoints } from '../src/history/checkpoints/signing.ts';
import { type Json, startService, type TestService } from './support/app.ts';
import { archivist } from './support/archives.ts';
import { dbQuery } from './support/database.ts';
import { dbTamper } from './support/histories.ts';
import { keyringOf, keyringText } from './support/keyrings.ts';
import { runEntry } from './support/process.ts';
import { t } from './support/tap.ts';

// Attackers with the rights of the owner change archives, or remove events without one.

interface Archived {
  chain: string;
  named: Record<string, string>;
  change(): Promise<unknown>;
  note(): Promise<string>;
  verify(): Promise<Json>;
}

/** An organization with five events, of which the first four are archived. */
async function startArchived(service: TestService, archives: ReturnType<typeof archivist>): Promise<Archived> {
  const { operator } = service;
  const { body } = await operator.post('/v1/organizations', { name: `Organization ${Math.random()}` });
  const chain: string = body.id;
  const named = { 'latchkey-organization': chain };
  let requests = 1;
  const change = () => operator.put('/v1/rate-limit', { requests: ++requests, windowSeconds: 60 }, named);
  const note = async () => (await operator.get('/v1/history/checkpoint', named)).body;
  const verify = async () => (await operator.get('/v1/history/verify?full=true', named)).body;
  for (let made = 0; made < 4; made++) await change();
  await archives.archive(chain, await note());
  return { chain, named, change, note, verify };
}

const everyHash = "sha256('invented')";

/** As the owner; `c` is the chain, `o` another chain with an archive. */
const damages: Array<[what: string, sql: string, firstBad: number, reason: RegExp]> = [
  ['a removed row', "delete from history_archives where chain = 'c'", 1, /sequence number 5/],
  [
    'a row that says more, and the removal of these events',
    `update history_archives set last_sequence = 5, hash = (select hash from history where chain = 'c' and sequence = 5)
       where chain = 'c'; delete from history where chain = 'c' and sequence = 5`,
    1,
    /written or changed without the keyring/,
  ],
  ['another hash', `update history_archives set hash = ${everyHash} where chain = 'c'`, 1, /without the keyring/],
  [
    'another file',
    `update history_archives set file_sha256 = ${everyHash} where chain = 'c'`,
    1,
    /without the keyring/,
  ],
  ['another number of bytes', "update history_archives set file_bytes = 1 where chain = 'c'", 1, /without the keyring/],
  [
    'other states',
    `update history_archives set states_sha256 = ${everyHash} where chain = 'c'`,
    1,
    /without the keyring/,
  ],
  ['another MAC', `update history_archives set mac = ${everyHash} where chain = 'c'`, 1, /without the keyring/],
  ['another entry', "update history_archives set mac_keyring_id = 'k9' where chain = 'c'", 1, /the keyring lacks k9/],
  [
    'the row of another chain',
    `delete from history_archives where chain = 'c'; update history_archives set chain = 'c' where chain = 'o';
     insert into history_archives select '${newId('archive')}', 'o', first_sequence, last_sequence, hash, file_sha256,
       file_bytes, states_sha256, archived_at, mac, mac_keyring_id from history_archives where chain = 'c'`,
    1,
    /without the keyring/,
  ],
];

t.test('a changed archive is found, and so are events that are missing beside it', async (t) => {
  const service = await startService(t, { keyring: keyringOf('evidence') });
  const { urls } = service;
  const archives = archivist(t, service);
  const found: Array<{ chain: string; reason: RegExp }> = [];
  for (const [what, sql, firstBad, reason] of damages) {
    const archived = await startArchived(service, archives);
    const other = await startArchived(service, archives);
    t.match(await archived.verify(), { valid: true, events: 5, archivedEvents: 4 });
    await dbQuery(urls.owner, sql.replaceAll("'c'", `'${archived.chain}'`).replaceAll("'o'", `'${other.chain}'`));
    const verdict = await archived.verify();
    t.match(verdict, { valid: false, firstBadSequence: firstBad, flaws: [{ reason }] }, what);
    t.equal(verdict.events, 0, what);
    found.push({ chain: archived.chain, reason });
  }
  const process = runEntry(t, 'cli/latchkey.ts', ['audit', 'verify'], {
    env: { DATABASE_URL: urls.app, LATCHKEY_KEYRING: keyringText('evidence') },
  });
  t.equal((await process.exited).code, 1);
  for (const { chain, reason } of found) {
    const line = process.output().match(new RegExp(`^wrong {3}${chain}: the first bad event is 1: .*$`, 'm'));
    t.match(line?.[0], reason);
  }
});

t.test('events are removed only up to the archive, in whatever way', async (t) => {
  const service = await startService(t, { keyring: keyringOf('evidence') });
  const { urls, organizationId } = service;
  const archives = archivist(t, service);
  const archived = await startArchived(service, archives);
  for (let made = 0; made < 3; made++) await archived.change();
  const refused: Array<[what: string, url: string, sql: string]> = [
    ['as the owner, behind the archive', urls.owner, `delete from history where chain = '${archived.chain}'`],
    ['as the owner, in another chain', urls.owner, `delete from history where chain = '${organizationId}'`],
    ['as the service', urls.app, `delete from history where chain = '${archived.chain}' and sequence < 5`],
    ['an archive by the service', urls.app, `insert into history_archives select * from history_archives`],
    ['another range by the service', urls.app, 'update history_archives set last_sequence = 6'],
    ['states by the service', urls.app, "update history_archive_states set state = '{}'"],
    ['fewer states by the service', urls.app, 'delete from history_archive_states'],
  ];
  for (const [what, url, sql] of refused) await t.rejects(dbQuery(url, sql), { code: '42501' }, what);
  t.match(await archived.verify(), { valid: true, events: 8 });
  await t.rejects(archivist(t, service, urls.app).archive(archived.chain, await archived.note()), {
    message: /Role .* may not remove events\. Set MIGRATION_DATABASE_URL/,
  });

  await dbTamper(urls.superuser, `delete from history where chain = '${archived.chain}' and sequence in (5, 6)`);
  t.match(await archived.verify(), {
    valid: false,
    events: 4,
    flaws: [{ firstSequence: 5, lastSequence: 6, reason: /sequence number 7/ }],
  });
});

t.test('an earlier archive put back does not hide what a later one has', async (t) => {
  const service = await startService(t, { keyring: keyringOf('evidence') });
  const { urls } = service;
  const archives = archivist(t, service);
  const archived = await startArchived(service, archives);
  for (let made = 0; made < 4; made++) await archived.change();
  const { last_sequence: last } = await archives.archive(archived.chain, await archived.note());
  t.match(await archived.verify(), { valid: true, events: last + 1, archivedEvents: last });
  await dbQuery(urls.owner, `delete from history_archives where chain = $1 and last_sequence = ${last}`, [
    archived.chain,
  ]);
  t.match(await archived.verify(), { valid: false, events: 4, firstBadSequence: 5, archivedEvents: 4 });
});

t.test('an event that is stored below the archive must belong to the chain', async (t) => {
  const service = await startService(t, { keyring: keyringOf('evidence') });
  const { urls } = service;
  const archives = archivist(t, service);
  const invented = async (sequence: number) => {
    const archived = await startArchived(service, archives);
    await dbTamper(
      urls.superuser,
      `insert into history select chain, ${sequence}, '${newId('event')}', at, action, actor_id, key_id,
         partner_id, replace(canonical, '"sequence":5', '"sequence":${sequence}'), previous_hash,
         sha256(previous_hash || convert_to(replace(canonical, '"sequence":5', '"sequence":${sequence}'), 'UTF8'))
       from history where chain = '${archived.chain}' and sequence = 5`,
    );
    return archived.verify();
  };
  t.match(await invented(2), { valid: false, flaws: [{ firstSequence: 2 }, { firstSequence: 3 }] });
  t.match((await invented(4)).flaws, [
    { firstSequence: 4 },
    { firstSequence: 4, reason: /differs from the last event of its archive/ },
    { firstSequence: 5 },
  ]);
});

t.test('rows of archives and their events are compared, also after the events are archived themselves', async (t) => {
  const service = await startService(t, { keyring: keyringOf('evidence') });
  const { urls, operator } = service;
  const archives = archivist(t, service);
  const note = async () => (await operator.get('/v1/history/checkpoint')).body;
  const differences = async () => (await operator.get('/v1/history/verify')).body.stateDifferences;
  const first = await startArchived(service, archives);
  const own = await archives.archive('installation', await note());
  const second = await startArchived(service, archives);
  t.match((await operator.get('/v1/history/verify')).body, { valid: true, archivedEvents: own.last_sequence });
  t.same(await differences(), []);
  for (const { chain } of [first, second]) {
    const rows = await dbQuery(urls.owner, 'delete from history_archives where chain = $1 returning *', [chain]);
    const id = String(rows[0]?.['id']);
    t.match(await differences(), [{ id, member: 'id', history: id, table: null }], 'an event without a row');
    const columns = Object.keys(rows[0] ?? {});
    await dbQuery(
      urls.owner,
      `insert into history_archives (${columns}) values (${columns.map((_name, index) => `$${index + 1}`)})`,
      Object.values(rows[0] ?? {}),
    );
    t.same(await differences(), []);
  }
  await dbQuery(
    urls.owner,
    `insert into history_archives select '${newId('archive')}', $2, first_sequence, last_sequence, hash, file_sha256,
       file_bytes, states_sha256, archived_at, mac, mac_keyring_id from history_archives where chain = $1`,
    [first.chain, service.organizationId],
  );
  t.match(await differences(), [{ member: 'id', history: null }], 'a row without an event');
});

/** A service whose organization has a key, a partner and a deleted key, all archived. */
async function startWithRecords(t: Test) {
  const service = await startService(t, { keyring: keyringOf('evidence') });
  const { admin, organizationId: chain, urls } = service;
  const { body: key } = await admin.post('/v1/keys', { name: 'Key', metadata: { n: 1e300, ä: null } });
  const { body: gone } = await admin.post('/v1/partners', { email: 'gone@p.example', permissions: ['read'] });
  await admin.delete(`/v1/partners/${gone.id}`);
  const { body: partner } = await admin.post('/v1/partners', { email: 'p@p.example', permissions: ['read'] });
  const note = async () => (await admin.get('/v1/history/checkpoint')).body;
  const archives = archivist(t, service);
  const { id } = await archives.archive(chain, await note());
  const differences = async () => (await admin.get('/v1/history/verify')).body.stateDifferences;
  t.same(await differences(), []);
  return { ...service, chain, key, partner, note, archives, archiveId: id as string, differences, urls };
}

t.test('records are compared with their archived states', async (t) => {
  const { admin, chain, key, partner, archiveId, urls, note, archives, differences } = await startWithRecords(t);
  const edit = (sql: string, ...values: unknown[]) => dbQuery(urls.superuser, sql, values);
  await edit("update api_keys set name = 'Edited' where id = $1", key.id);
  t.same(await differences(), [{ id: key.id, member: 'name', history: 'Key', table: 'Edited' }]);
  await edit("update api_keys set name = 'Key' where id = $1", key.id);
  await edit('update partners set deleted_at = null where deleted_at is not null');
  t.match(await differences(), [{ member: 'deletedAt', table: null }], 'a deletion that was undone');
  await edit(
    'update partners set deleted_at = (select max(deleted_at) from api_keys) where email = $1',
    'gone@p.example',
  );
  await edit(
    'set session_replication_role = replica; delete from partners where id = $1'.replace('$1', `'${partner.id}'`),
  );
  t.match(await differences(), [{ id: partner.id, member: 'id', table: null }], 'a missing row');
  await edit('delete from history_archive_states where id = $1', partner.id);
  t.match(await differences(), [{ id: archiveId, member: 'statesSha256' }], 'a missing row without its state');
  await admin.patch(`/v1/keys/${key.id}`, { name: 'Changed' });
  await t.rejects(archives.archive(chain, await note()), { message: /The stored states of archive_.* were changed/ });
});

t.test('a changed state of an archive is found', async (t) => {
  const { key, archiveId, urls, differences } = await startWithRecords(t);
  const setState = (sql: string) =>
    dbQuery(urls.owner, `update history_archive_states set state = ${sql} where id = $1`, [key.id]);
  await setState(`replace(state, '"Key"', '"Another"')`);
  t.match(await differences(), [
    { id: key.id, member: 'name', history: 'Another', table: 'Key' },
    { id: archiveId, member: 'statesSha256' },
  ]);
  for (const text of ['null', '7', 'no JSON']) {
    await setState(`'${text}'`);
    t.match(
      await differences(),
      [
        { id: key.id, member: 'id' },
        { id: archiveId, member: 'statesSha256' },
      ],
      text,
    );
  }
});

t.test('invented and unreadable events are archived like others', async (t) => {
  const service = await startService(t, { keyring: keyringOf('evidence') });
  const { app, admin, urls, organizationId: chain } = service;
  const append = async (action: string, details: unknown) => {
    const [place] = await dbQuery(urls.app, 'select next_sequence::int, at_ms from history_begin($1)', [chain]);
    const event = {
      id: newId('event'),
      organizationId: chain,
      sequence: place?.['next_sequence'],
      at: new Date(Number(place?.['at_ms'])).toISOString(),
      action,
      actor: { type: 'admin', id: 'x', name: 'x', email: null },
      keyId: null,
      partnerId: null,
      request: null,
      details,
    };
    await dbQuery(urls.app, 'select history_append($1, $2)', [chain, canonicalJson(event)]);
  };
  const accessTokenId = Array.from({ length: 400 }, () => newId('token')).join('\u{1f600}');
  await append('access_token.created', { accessTokenId });
  await append('future.action', { '': null });
  const { body: key } = await admin.post('/v1/keys', { name: 'Key' });
  await append('key.created', {});
  const headers = { authorization: `Bearer ${admin.token}` };
  const note = async () => (await app.inject({ url: '/v1/history/checkpoint', headers })).body;
  const invented = { member: 'id', table: null };
  const differences = async () => (await admin.get('/v1/history/verify')).body.stateDifferences;
  t.match(await differences(), [invented]);
  const archives = archivist(t, service);
  const { file } = await archives.archive(chain, await note());
  t.match(await differences(), [invented], 'what was invented is still found');
  await admin.patch(`/v1/keys/${key.id}`, { name: 'Renamed' });
  const next = await archives.archive(chain, await note());
  t.match(await differences(), [invented]);
  const process = runEntry(
    t,
    'cli/latchkey.ts',
    ['audit', 'verify', '--organization', chain, '--archive', file, next.file],
    {
      env: { DATABASE_URL: urls.app, LATCHKEY_KEYRING: keyringText('evidence') },
    },
  );
  await process.exited;
  t.match(process.output(), new RegExp(`^ok {6}${chain}: `, 'm'));
});

t.test('members that a later version adds are compared, also of archived records', async (t) => {
  const { admin, key, urls, archiveId, differences } = await startWithRecords(t);
  await dbQuery(
    urls.owner,
    `update history_archive_states set state = regexp_replace(state, ',"scopes":[^]]*]', '') where id = $1`,
    [key.id],
  );
  await admin.patch(`/v1/keys/${key.id}`, { scopes: ['reports:read'] });
  t.match(await differences(), [{ id: archiveId, member: 'statesSha256' }]);
  t.equal((await differences()).length, 1);
});

t.test('a chain of which only the archive is left is reported', async (t) => {
  const service = await startService(t, { keyring: keyringOf('evidence') });
  const { chain } = await startArchived(service, archivist(t, service));
  const tables = ['history', 'history_heads', 'verified_points'].map(
    (table) => `delete from ${table} where chain = '${chain}'`,
  );
  await dbTamper(
    service.urls.superuser,
    `set session_replication_role = replica; ${tables.join('; ')}; delete from organizations where id = '${chain}'`,
  );
  const process = runEntry(t, 'cli/latchkey.ts', ['audit', 'verify'], {
    env: { DATABASE_URL: service.urls.app, LATCHKEY_KEYRING: keyringText('evidence') },
  });
  t.match(await process.exited, { code: 1 });
  t.match(process.output(), new RegExp(`^wrong {3}${chain}: the first bad event is 1: .*the tail was cut`, 'm'));
});

t.test('a checkpoint of archived events stops signing, because it cannot be compared any more', async (t) => {
  const service = await startService(t, { keyring: keyringOf('evidence') });
  const { admin, keyring, client, organizationId: chain } = service;
  await admin.put('/v1/rate-limit', { requests: 2, windowSeconds: 60 });
  const { body: early } = await admin.get('/v1/history/checkpoint');
  await admin.put('/v1/rate-limit', { requests: 3, windowSeconds: 60 });
  const { body: late } = await admin.get('/v1/history/checkpoint');
  await archivist(t, service).archive(chain, late);
  const startWith = (note: string) => {
    const checkpoint = parseCheckpoint(note);
    const remembered = checkpoint === undefined ? [] : [checkpoint];
    const file = { remembered, torn: 0, unknownKeys: 0, append: async () => undefined, close: async () => undefined };
    return createCheckpoints({
      db: client.db,
      keyring,
      file,
      logger: { error: () => undefined, info: () => undefined },
    });
  };
  await t.rejects(startWith(early).sign(chain), {
    code: 'history_altered',
    message: /the last signed one, is archived/,
  });
  t.equal(await startWith(late).sign(chain), late);
});
