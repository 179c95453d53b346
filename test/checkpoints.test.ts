import { spawnSync } from 'node:child_process';
import { createHash, createPublicKey, verify } from 'node:crypto';
import { writeFileSync } from 'node:fs';
import path from 'node:path';
import { createCheckpoints } from '../src/history/checkpoints/signing.ts';
import { startService, type TestService } from './support/app.ts';
import { dbQuery } from './support/database.ts';
import { dbTamper, scratchFolder } from './support/histories.ts';
import { keyringOf } from './support/keyrings.ts';
import { unlessInstalled } from './support/programs.ts';
import { t } from './support/tap.ts';

/** Parses a note by the format of https://c2sp.org/signed-note. */
function readNote(note: string) {
  const [text = '', signatures = ''] = note.split('\n\n');
  const [origin, size, hash] = text.split('\n');
  return {
    origin,
    size: Number(size),
    hash: Buffer.from(hash ?? '', 'base64').toString('hex'),
    signed: Buffer.from(`${text}\n`),
    signatures: signatures
      .trimEnd()
      .split('\n')
      .map((line) => {
        const [dash, name, encoded = ''] = line.split(' ');
        const bytes = Buffer.from(encoded, 'base64');
        return { dash, name, keyId: bytes.toString('hex', 0, 4), signature: bytes.subarray(4) };
      }),
  };
}

async function publicKeysOf({ app }: TestService) {
  const response = await app.inject('/.well-known/latchkey-history-key');
  const text = response.body;
  const pems = text.match(/-----BEGIN PUBLIC KEY-----[^-]+-----END PUBLIC KEY-----\n/g) ?? [];
  const lines = text.split('\n').filter((line) => line.startsWith('latchkey+'));
  return { response, text, pems, lines };
}

/** The reply of `GET /v1/history/checkpoint` is plain text. */
async function checkpointOf(service: TestService, token = service.admin.token, headers: Record<string, string> = {}) {
  const response = await service.app.inject({
    url: '/v1/history/checkpoint',
    headers: { authorization: `Bearer ${token}`, ...headers },
  });
  return { status: response.statusCode, type: response.headers['content-type'], text: response.body };
}

/** Restores the state of an old backup: the last events are missing, without a trace. */
async function dbCutTail({ urls }: TestService, chain: string, keep: number): Promise<void> {
  await dbTamper(
    urls.superuser,
    `delete from history where chain = '${chain}' and sequence > ${keep};
     update history_heads set sequence = ${keep},
       hash = (select hash from history where chain = '${chain}' and sequence = ${keep}) where chain = '${chain}'`,
  );
}

const refusedGauge = async ({ app }: TestService) =>
  /^latchkey_history_checkpoints_refused (\d+)$/m.exec((await app.inject('/metrics')).body)?.[1];

t.test('a checkpoint is a signed note about the head of the chain', async (t) => {
  const service = await startService(t);
  const { admin, operator, organizationId } = service;
  await admin.post('/v1/keys', {});
  const { status, type, text } = await checkpointOf(service);
  t.equal(status, 200);
  t.equal(type, 'text/plain; charset=utf-8');
  const note = readNote(text);
  const [last] = (await admin.get('/v1/history?limit=1')).body.data;
  t.match(note, { origin: `latchkey/${organizationId}`, size: last.sequence, hash: last.hash });

  const { response, pems, lines } = await publicKeysOf(service);
  t.equal(response.headers['content-type'], 'text/plain; charset=utf-8');
  t.same([pems.length, lines.length, note.signatures.length], [1, 1, 1]);
  const [signature] = note.signatures;
  const publicKey = createPublicKey(pems[0] ?? '');
  t.match(signature, { dash: '—', name: 'latchkey' });
  t.ok(verify(null, note.signed, publicKey, signature?.signature ?? Buffer.alloc(0)), 'Ed25519 over the text');
  const raw = publicKey.export({ format: 'der', type: 'spki' }).subarray(-32);
  const typed = Buffer.concat([Buffer.of(1), raw]);
  const keyId = createHash('sha256').update('latchkey\n').update(typed).digest('hex').slice(0, 8);
  t.equal(signature?.keyId, keyId);
  t.equal(lines[0], `latchkey+${keyId}+${typed.toString('base64')}`);

  t.equal((await checkpointOf(service)).text, text, 'the same head gives the same bytes');
  await admin.post('/v1/keys', {});
  t.equal(readNote((await checkpointOf(service)).text).size, last.sequence + 1);
  const installation = readNote((await checkpointOf(service, operator.token)).text);
  t.equal(installation.origin, 'latchkey/installation');
  const named = { 'latchkey-organization': organizationId };
  t.equal(readNote((await checkpointOf(service, operator.token, named)).text).size, last.sequence + 1);
});

t.test('openssl verifies a checkpoint with the published key', { skip: unlessInstalled('openssl') }, async (t) => {
  const service = await startService(t);
  const folder = scratchFolder(t);
  const note = readNote((await checkpointOf(service)).text);
  const file = (name: string, content: string | Buffer) => {
    writeFileSync(path.join(folder, name), content);
    return path.join(folder, name);
  };
  const key = file('key', (await publicKeysOf(service)).text);
  const signature = file('signature', note.signatures[0]?.signature ?? '');
  const openssl = (text: string) =>
    spawnSync('openssl', ['pkeyutl', '-verify', '-pubin', '-inkey', key, '-rawin', '-in', text, '-sigfile', signature]);
  t.equal(openssl(file('text', note.signed)).status, 0);
  t.not(openssl(file('other', Buffer.concat([note.signed, Buffer.from('x')]))).status, 0);
});

t.test('a shortened or different history is never signed', async (t) => {
  const service = await startService(t);
  const { admin, organizationId, urls } = service;
  for (let key = 0; key < 2; key++) await admin.post('/v1/keys', {});
  const signed = await checkpointOf(service);
  const { size } = readNote(signed.text);
  const isRefused = async (what: string, why: RegExp) => {
    const before = service.logLines.length;
    const { status, text } = await checkpointOf(service);
    const problem = JSON.parse(text);
    t.equal(status, 409, what);
    t.match(problem, { code: 'history_altered', detail: why, lastCheckpoint: signed.text }, what);
    const logText = service.logLines.slice(before).join('');
    t.match(logText, /"level":50.*THE HISTORY CONTRADICTS ITS LAST CHECKPOINT/, `${what}: logged`);
    t.equal(await refusedGauge(service), '1', `${what}: counted in the metrics`);
  };

  const rows = await dbQuery(urls.superuser, 'select * from history where chain = $1 order by sequence', [
    organizationId,
  ]);
  const head = await dbQuery(urls.superuser, 'select * from history_heads where chain = $1', [organizationId]);
  const restoreHistory = async () => {
    for (const row of rows) {
      await dbQuery(
        urls.superuser,
        `insert into history select * from json_populate_record(null::history, $1) on conflict do nothing`,
        [{ ...row, ...asHex(row) }],
      );
    }
    await dbQuery(urls.superuser, 'update history_heads set sequence = $1, hash = $2 where chain = $3', [
      head[0]?.['sequence'],
      head[0]?.['hash'],
      organizationId,
    ]);
  };
  const asHex = (row: Record<string, unknown>) =>
    Object.fromEntries(
      Object.entries(row).flatMap(([name, value]) =>
        Buffer.isBuffer(value) ? [[name, `\\x${value.toString('hex')}`]] : [],
      ),
    );

  await dbCutTail(service, organizationId, size - 1);
  await isRefused('a cut tail', /it has \d+ events, but \d+ were signed/);
  await admin.put('/v1/rate-limit', { requests: 7, windowSeconds: 60 });
  await isRefused('an old backup that has gone on to the same size', /differs from the signed one/);
  await admin.put('/v1/rate-limit', { requests: 8, windowSeconds: 60 });
  await isRefused('and to a greater one', /differs from the signed one/);
  await dbCutTail(service, organizationId, size - 1);
  await restoreHistory();
  t.equal((await checkpointOf(service)).text, signed.text, 'the restored history is signed again');
  t.equal(await refusedGauge(service), '0');

  await dbQuery(urls.superuser, `update history_heads set sequence = sequence + 1 where chain = $1`, [organizationId]);
  await isRefused('a head that speaks of more events than there are', /the last of them is missing/);
  await restoreHistory();
  await dbQuery(urls.superuser, `delete from history_heads where chain = $1`, [organizationId]);
  await isRefused('a chain that is gone', /it has 0 events/);
});

t.test('while the keyring is rotated, old and new keys sign the same history', async (t) => {
  const before = await startService(t, { keyring: keyringOf('old') });
  const { urls } = before;
  const oldNote = readNote((await checkpointOf(before)).text);
  const after = await startService(t, { urls, keyring: keyringOf('new', 'old') });
  const note = readNote((await checkpointOf(after, before.admin.token)).text);
  const { pems, lines } = await publicKeysOf(after);
  t.equal(lines.length, 2, 'the older entry is still published');
  const [primary, secondary] = pems.map((pem) => createPublicKey(pem));
  const isBy = (key: typeof primary, { signed, signatures }: typeof note) =>
    signatures.some(({ signature }) => key !== undefined && verify(null, signed, key, signature));
  t.same([isBy(primary, oldNote), isBy(secondary, oldNote)], [false, true]);
  t.same([isBy(primary, note), isBy(secondary, note)], [true, true]);
  t.same((await publicKeysOf(before)).lines, lines.slice(1));
});

t.test('a chain whose head cannot be signed is refused alone; other chains get their checkpoints', async (t) => {
  const service = await startService(t);
  const { urls, organizationId } = service;
  const { body: other } = await service.operator.post('/v1/organizations', { name: 'Other' });
  const tooLong = '1000000000000000';
  await dbQuery(
    urls.superuser,
    `insert into history select chain, ${tooLong}, 'event_odd', at, action, actor_id, key_id, partner_id, canonical, previous_hash, hash
     from history where chain = '${organizationId}' and sequence = 1`,
  );
  await dbQuery(
    urls.superuser,
    `update history_heads set sequence = ${tooLong}, hash = (select hash from history where id = 'event_odd')
     where chain = '${organizationId}'`,
  );
  t.equal((await checkpointOf(service)).status, 409);
  const inOther = { 'latchkey-organization': other.id };
  t.equal((await checkpointOf(service, service.operator.token, inOther)).status, 200);
  const { db } = service.client;
  const notes = await createCheckpoints({ db, keyring: service.keyring, logger: service.app.log }).signChanged();
  t.equal(notes.filter((note) => note.includes(other.id)).length, 1);
  t.equal(notes.filter((note) => note.includes(organizationId)).length, 0);
});

t.test('a restored chain is no longer counted as refused', async (t) => {
  const { urls, client, keyring, app, organizationId } = await startService(t);
  const checkpoints = createCheckpoints({ db: client.db, keyring, logger: app.log });
  await checkpoints.signChanged();
  const heads = 'select sequence, hash from history_heads where chain = $1';
  const [head] = await dbQuery(urls.superuser, heads, [organizationId]);
  const putHead = (sequence: unknown, hash: unknown) =>
    dbQuery(urls.superuser, 'update history_heads set sequence = $2, hash = $3 where chain = $1', [
      organizationId,
      sequence,
      hash,
    ]);
  await putHead(0, Buffer.alloc(32));
  t.same(await checkpoints.signChanged(), []);
  t.equal(checkpoints.refused(), 1);
  await putHead(head?.['sequence'], head?.['hash']);
  await checkpoints.signChanged();
  t.equal(checkpoints.refused(), 0);
});
