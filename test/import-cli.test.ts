import { readFile, stat, writeFile } from 'node:fs/promises';
import path from 'node:path';
import type { Test } from 'tap';
import { readLines, UnreadableFile } from '../src/cli/import-lines.ts';
import { startService, type TestService } from './support/app.ts';
import { dbAddPartners, dbDump, dbQuery } from './support/database.ts';
import { foreignToken, importLine, sha256Of, tracesOf } from './support/imports.ts';
import { scratch } from './support/instance.ts';
import { keyringOf, keyringText } from './support/keyrings.ts';
import { runEntry } from './support/process.ts';
import { proxyTo } from './support/proxy.ts';
import { t } from './support/tap.ts';

const keyring = keyringOf('one');

interface Run {
  url?: string;
  organization?: string;
  keyring?: string[];
  /** For standard input. */
  input?: string;
}

function startImport(t: Test, service: TestService, args: string[], run: Run = {}) {
  const env = { DATABASE_URL: run.url ?? service.urls.app, LATCHKEY_KEYRING: keyringText(...(run.keyring ?? ['one'])) };
  const organization = run.organization ?? service.organizationId;
  const process = runEntry(t, 'cli/latchkey.ts', ['import', ...args, '--organization', organization], { env });
  process.child.stdin?.end(run.input ?? '');
  return process;
}

async function runImport(t: Test, service: TestService, args: string[], run: Run = {}) {
  const process = startImport(t, service, args, run);
  const { code } = await process.exited;
  return { code, output: process.output(), stdout: process.stdout() };
}

async function fileOf(t: Test, name: string, content: string | Buffer): Promise<string> {
  const file = path.join(await scratch(t), name);
  await writeFile(file, content);
  return file;
}

const ndjson = (t: Test, lines: unknown[]) =>
  fileOf(t, 'keys.ndjson', lines.map((line) => `${typeof line === 'string' ? line : JSON.stringify(line)}\n`).join(''));

const addPartners = ({ urls, organizationId }: TestService, count: number) =>
  dbAddPartners(urls.superuser, organizationId, count);

/** Everything that an import may change. */
const stateOf = async ({ urls }: TestService) => ({
  keys: await dbQuery(urls.superuser, 'select * from api_keys order by id'),
  events: await dbQuery(urls.superuser, 'select chain, sequence from history order by 1, 2'),
});

const importedKeys = ({ urls }: TestService) =>
  dbQuery(urls.superuser, "select count(*)::int as keys from api_keys where origin = 'imported'");

t.test(
  'an NDJSON file is imported: its keys work, their import is recorded, and a second run changes nothing',
  async (t) => {
    const service = await startService(t, { keyring });
    await addPartners(service, 2);
    const [first, second, third] = [foreignToken(), foreignToken(), foreignToken()];
    const file = await ndjson(t, [
      { partnerExternalId: 'customer-0', permission: 'read', plaintext: first, name: 'Billing', metadata: { a: 1 } },
      '',
      { partnerExternalId: 'customer-1', permission: 'write', sha256: sha256Of(second), lastFour: second.slice(-4) },
      { sha256: Buffer.from(sha256Of(third), 'hex').toString('base64url'), name: null },
    ]);
    const { code, stdout, output } = await runImport(t, service, [file]);
    t.equal(code, 0, output);
    t.equal(stdout, '3 keys were imported.\n');
    t.match(output, /^Importing bytes: 0 of (\d+)\nImporting bytes: \1 of \1$/m);
    for (const [token, access] of [
      [first, 'read'],
      [second, 'write'],
      [third, 'write'],
    ] as const) {
      t.match((await service.verifier.post('/v1/verify', { key: token, permission: access })).body, { code: 'valid' });
    }
    const { body } = await service.admin.get('/v1/history?action=key.imported');
    t.equal(body.data.length, 3);
    t.match(body.data[2], {
      actor: { type: 'system', id: 'import', name: 'import', email: null },
      details: { name: 'Billing', plaintextGiven: true },
      ip: null,
    });
    const dump = await dbDump(service.urls.superuser);
    for (const trace of [first, second, third].flatMap(tracesOf)) t.notMatch(dump, trace);

    const before = await stateOf(service);
    const again = await runImport(t, service, [file]);
    t.match(again, { code: 0, stdout: '0 keys were imported.\n3 keys are already there and were skipped.\n' });
    t.same(await stateOf(service), before, 'not even an event');
  },
);

t.test('a CSV file as spreadsheets and databases write it is imported', async (t) => {
  const service = await startService(t, { keyring });
  await addPartners(service, 2);
  const [first, second, third] = [foreignToken(), foreignToken(), foreignToken()];
  const header =
    'partnerExternalId,permission,name,expiresAt,rateLimitRequests,rateLimitWindowSeconds,allowedIps,scopes,' +
    'metadata,metadata.plan,metadata.note,plaintext,sha256,lastFour';
  const rows = [
    `customer-0,read,"Ada, ""the"" first",2099-01-01T00:00:00Z,10,60,203.0.113.0/24; 2001:db8::1,a:read b,"{""team"":""x""}",gold,"two\r\nlines",${first},,`,
    '',
    `customer-1,write,Zoë,,,,,,,,,,${sha256Of(second).toUpperCase()},${second.slice(-4)}`,
    `customer-9,read,,,,,,,,,,${third},,`,
  ];
  const file = await fileOf(t, 'keys.csv', `\uFEFF${[header, ...rows].join('\r\n')}\r\n`);
  const { code, stdout } = await runImport(t, service, [file]);
  t.equal(code, 1);
  t.equal(
    stdout,
    'wrong   Line 6: partnerExternalId: there is no such partner in this organization.\n' +
      '2 keys were imported.\nwrong   1 line does not fit.\n',
    'a record counts as its first line',
  );
  const [other, one] = (await service.admin.get('/v1/keys?limit=2')).body.data;
  t.match(one, {
    permission: 'read',
    name: 'Ada, "the" first',
    expiresAt: '2099-01-01T00:00:00.000Z',
    rateLimit: { requests: 10, windowSeconds: 60 },
    allowedIps: ['203.0.113.0/24', '2001:db8::1'],
    scopes: ['a:read', 'b'],
    metadata: { team: 'x', plan: 'gold', note: 'two\r\nlines' },
    maskedKey: `…${first.slice(-4)}`,
  });
  t.match(other, {
    permission: 'write',
    name: 'Zoë',
    rateLimit: null,
    metadata: {},
    maskedKey: `…${second.slice(-4)}`,
  });
});

t.test(
  'what does not fit is reported by line without a token, the rest is imported, and --errors keeps the lines',
  async (t) => {
    const service = await startService(t, { keyring });
    await addPartners(service, 1);
    const { body: other } = await service.operator.post('/v1/organizations', { name: 'Other' });
    const [good, bad, foreign] = [foreignToken(), foreignToken(), foreignToken()];
    const elsewhere = await ndjson(t, [{ plaintext: foreign }]);
    t.match(await runImport(t, service, [elsewhere], { organization: other.id }), { code: 0 });
    const own = { partnerExternalId: 'customer-0', permission: 'read' };
    const lines = [
      `{"plaintext":"${bad}"`,
      { ...own, plaintext: bad, scopes: ['a b'] },
      { ...own, plaintext: bad, [bad]: true },
      { ...own, plaintext: bad, name: `of ${bad}` },
      `{"plaintext":"${bad}","plaintext":"${bad}"}`,
      `"${bad}"`,
      { ...own, sha256: '$2b$10$N9qo8uLOickgx2ZMRZoMyeIjZAgcfl7p92ldGxad68LJZdL17lhWy' },
      { ...own, sha256: bad },
      { ...own, plaintext: foreign },
      { ...own, plaintext: bad, expiresAt: '2001-01-01T00:00:00Z' },
      { ...own, plaintext: good },
      { ...own, plaintext: good, name: 'Again' },
      { ...own, plaintext: foreignToken() },
      { ...own, plaintext: bad },
      JSON.stringify({ ...own, plaintext: bad, metadata: { text: 'x'.repeat(200_000) } }),
    ];
    const file = await ndjson(t, lines);
    const errors = path.join(await scratch(t), 'errors.ndjson');
    const { code, stdout, output } = await runImport(t, service, [file, '--errors', errors]);
    t.equal(code, 1);
    const expected = [
      'Line 1: is not valid JSON in UTF-8, or is nested too deeply',
      'Line 2: scopes.0: must be printable ASCII',
      'Line 3: …: is unknown; remove it',
      'Line 4: name: must not contain the plaintext',
      'Line 5: plaintext: must not occur twice',
      'Line 6: must be an object',
      'Line 7: sha256: is a password hash (such as bcrypt or argon2)',
      'Line 8: sha256: must be a SHA-256: 64 hex digits, or 32 bytes in base64 or base64url',
      'Line 9: plaintext: key of another organization already has this token',
      'Line 10: expiresAt: must be later than now',
      'Line 14: partnerExternalId: The row already holds two live keys',
      'Line 15: is longer than 131072 bytes',
    ];
    const reported = stdout.split('\n').filter((line) => line.startsWith('wrong   Line'));
    t.equal(reported.length, expected.length, stdout);
    for (const [index, text] of expected.entries()) t.match(reported[index], `wrong   ${text}`);
    t.match(
      stdout,
      /^2 keys were imported\.\n1 line repeats the token of an earlier line and was skipped\.\nwrong {3}12 lines do not fit\.$/m,
    );
    for (const token of [good, bad, foreign]) t.notMatch(output, token);
    t.same(await importedKeys(service), [{ keys: 3 }]);

    const kept = (await readFile(errors, 'utf8')).split('\n');
    t.same(kept.slice(0, 2), [lines[0], JSON.stringify(lines[1])]);
    t.equal(kept.length, 12, 'without the line that is too long');
    t.equal((await stat(errors)).mode & 0o777, 0o600);
    t.match(await runImport(t, service, [file, '--errors', errors]), {
      code: 1,
      output: /exists already.*Nothing was imported/s,
    });
  },
);

t.test('a corrected file of errors can be imported, in CSV too', async (t) => {
  const service = await startService(t, { keyring });
  await addPartners(service, 1);
  const [one, two] = [foreignToken(), foreignToken()];
  const csv = `partnerExternalId,permission,plaintext\r\ncustomer-0,rread,${one}\r\ncustomer-0,write\r\n`;
  const errors = path.join(await scratch(t), 'errors.csv');
  const first = await runImport(t, service, [await fileOf(t, 'keys.csv', csv), '--errors', errors]);
  t.match(first.stdout, /Line 2: permission: must be .*\n.*Line 3: has 2 cells, but the header line has 3/);
  const kept = await readFile(errors, 'utf8');
  t.equal(kept, `partnerExternalId,permission,plaintext\ncustomer-0,rread,${one}\ncustomer-0,write\n`);
  await writeFile(errors, kept.replace('rread', 'read').replace('write\n', `write,${two}\n`));
  t.match(await runImport(t, service, [errors]), { code: 0, stdout: '2 keys were imported.\n' });
});

t.test('a file that is no table of keys is rejected without printing a token, and nothing is imported', async (t) => {
  const service = await startService(t, { keyring });
  const token = foreignToken();
  const before = await stateOf(service);
  for (const [content, expected] of [
    ['\n', /contains no keys/],
    [`${token},read\n`, /Line 1: column 1 is unknown.*partnerId, partnerExternalId, permission/],
  ] as const) {
    const { code, output, stdout } = await runImport(t, service, [await fileOf(t, 'keys.csv', content)]);
    t.equal(code, 1, output);
    t.match(output, expected);
    t.match(stdout, /^0 keys were imported\.$/m);
    t.notMatch(output, token);
  }
  t.same(await stateOf(service), before);
});

t.test('keys before a record with wrong quotes are imported', async (t) => {
  const service = await startService(t, { keyring });
  const file = await fileOf(t, 'keys.csv', `plaintext,name\n${foreignToken()},a\n${foreignToken()},"b"c\n`);
  const { code, stdout } = await runImport(t, service, [file]);
  t.equal(code, 1);
  t.match(stdout, /The quotes of the record from line 3 on are wrong.*\n1 key was imported\./);
});

/** Reads a CSV file in ten pieces. */
async function readCsv(content: string | Buffer): Promise<Array<{ number: number; read: unknown }>> {
  const bytes = Buffer.from(content);
  const size = Math.ceil(bytes.length / 10);
  async function* pieces() {
    for (let at = 0; at < bytes.length; at += size) yield bytes.subarray(at, at + size);
  }
  const lines = [];
  try {
    for await (const { number, read } of readLines('csv', pieces()).lines) lines.push({ number, read });
  } catch (error) {
    if (!(error instanceof UnreadableFile)) throw error;
    lines.push({ number: 0, read: error.message });
  }
  return lines;
}

t.test('of a CSV file with a mistake, the records before it are read, and the mistake is named', async (t) => {
  const entry = (plaintext: string) => ({ entry: { plaintext } });
  t.same(await readCsv('plaintext\r\na\nb'), [
    { number: 2, read: entry('a') },
    { number: 3, read: entry('b') },
  ]);
  for (const [content, expected] of [
    ['', []],
    ['plaintext\n', []],
    ['plaintext,owner\n', [/^Line 1: column 2 \(owner\) is unknown/]],
    [`plaintext,${'x'.repeat(16)}\n`, [/^Line 1: column 2 is unknown/]],
    ['plaintext,plaintext\n', [/^Column 2 of the header line occurs twice/]],
    ['plaintext,metadata.\n', [/^Line 1: column 2 \(metadata\.\) is unknown/]],
    ['name\nx\n', [/neither a column plaintext nor a column sha256/]],
    [
      'plaintext,name\na,b\nc,"d"e\nf,g\n',
      [{ entry: { plaintext: 'a', name: 'b' } }, /record from line 3 on are wrong/],
    ],
    [
      'plaintext,name\na,b\nc,d"e\nf,g\n',
      [{ entry: { plaintext: 'a', name: 'b' } }, /record from line 3 on are wrong/],
    ],
    ['plaintext,name\na,"b\nf,g\n', [/record from line 2 on are wrong/]],
    [
      `plaintext,name\na,"${'x'.repeat(140_000)}\n`,
      [/from line 2 on is longer than 131072 bytes; is a quote not closed/],
    ],
    [Buffer.from('plaintext,name\na,Zo\xEB\n', 'latin1'), [{ flaw: 'is not valid UTF-8' }]],
    ['plaintext,metadata\na,"{""b"":"\n', [{ path: 'metadata', flaw: /is not valid JSON/ }]],
    ['plaintext,metadata\na,[]\n', [{ path: 'metadata', flaw: 'must be a JSON object' }]],
    ['plaintext,metadata.__proto__\na,b\n', [{ entry: { metadata: JSON.parse('{"__proto__":"b"}') } }]],
    ['plaintext,rateLimitRequests\na,many\n', [{ entry: { rateLimit: { requests: 'many' } } }]],
  ] as const) {
    const read = (await readCsv(content)).map((line) => line.read);
    t.equal(read.length, expected.length, String(content).slice(0, 40));
    for (const [index, pattern] of expected.entries()) t.match(read[index], pattern);
  }
});

t.test('a dry run reports what the import would, also between batches, and stores nothing', async (t) => {
  const service = await startService(t, { keyring });
  await addPartners(service, 600);
  const line = (partner: number) => importLine(partner, 'read');
  const again = line(3);
  // Further apart than a batch: a third key of one row, and a token twice.
  const lines = [
    line(0),
    line(0),
    again,
    ...Array.from({ length: 560 }, (_, index) => line(index + 10)),
    line(0),
    again,
  ];
  const file = await ndjson(t, lines);
  const before = await stateOf(service);
  const rehearsed = await runImport(t, service, [file, '--dry-run']);
  t.equal(rehearsed.code, 1);
  t.match(rehearsed.stdout, /^wrong {3}Line 564: partnerExternalId: The row already holds two live keys/);
  t.match(
    rehearsed.stdout,
    /^563 keys would be imported\. Nothing was stored\.\n1 line repeats the token of an earlier line/m,
  );
  t.same(await stateOf(service), before);

  const real = await runImport(t, service, [file]);
  t.match(real.stdout, /^wrong {3}Line 564: partnerExternalId: The row already holds two live keys/);
  t.match(real.stdout, /^563 keys were imported\.\n1 key is already there and was skipped\./m);
  const after = await stateOf(service);
  t.match(
    (await runImport(t, service, [file, '--dry-run'])).stdout,
    /^0 keys would be imported\..*\n564 keys are already/m,
  );
  t.same(await stateOf(service), after);
});

t.test('keys that were changed, deleted or found compromised since stay as they are', async (t) => {
  const service = await startService(t, { keyring });
  await addPartners(service, 2);
  const { admin } = service;
  const lines = [importLine(0, 'read'), importLine(0, 'write'), importLine(1, 'read'), importLine(1, 'write')];
  const file = await ndjson(
    t,
    lines.map((line) => ({ ...line, name: 'Imported', metadata: { b: 1, a: [1, 2] } })),
  );
  t.match(await runImport(t, service, [file]), { code: 0 });
  const [fourth, third, second] = (await admin.get('/v1/keys?limit=4')).body.data;
  await admin.patch(`/v1/keys/${second.id}`, { name: 'Renamed' });
  await admin.delete(`/v1/keys/${third.id}`);
  await admin.delete(`/v1/keys/${fourth.id}?reason=compromised`);
  const before = await stateOf(service);
  t.match(await runImport(t, service, [file]), {
    code: 0,
    stdout:
      '0 keys were imported.\n4 keys are already there and were skipped.\n' +
      '  1 of them has other settings or another owner than in the file.\n  2 of them are deleted, and stay so.\n',
  });
  t.same(await stateOf(service), before);
});

t.test('a killed import is completed by the next one: each key is there once', async (t) => {
  const service = await startService(t, { keyring });
  const count = 2_500;
  await addPartners(service, count / 2);
  const lines = Array.from({ length: count }, (_, index) =>
    importLine(index % (count / 2), index < count / 2 ? 'read' : 'write'),
  );
  const file = await ndjson(t, lines);
  const killed = startImport(t, service, [file]);
  await killed.until(/Importing bytes: [1-9]\d* of/);
  killed.child.kill('SIGKILL');
  await killed.exited;
  const there = Number((await importedKeys(service))[0]?.['keys']);
  t.ok(there > 0 && there < count, `${there} keys were imported before the kill`);
  t.match(await runImport(t, service, [file]), {
    code: 0,
    stdout: `${count - there} keys were imported.\n${there} keys are already there and were skipped.\n`,
  });
  t.same(await importedKeys(service), [{ keys: count }]);
  t.same(
    await dbQuery(service.urls.superuser, "select count(*)::int as events from history where action = 'key.imported'"),
    [{ events: count }],
  );
  const { plaintext } = lines[count - 1] ?? {};
  t.equal((await service.verifier.post('/v1/verify', { key: plaintext, permission: 'write' })).body.code, 'valid');
  const before = await stateOf(service);
  t.match(await runImport(t, service, [file]), { code: 0, stdout: `0 keys were imported.\n${count} keys are already` });
  t.same(await stateOf(service), before);
  t.match((await service.operator.get('/v1/history/verify')).body, { valid: true });
});

t.test(
  'if the database is lost on the way, the command says how far it came, and the next run continues',
  async (t) => {
    const service = await startService(t, { keyring });
    await addPartners(service, 2_000);
    const file = await ndjson(
      t,
      Array.from({ length: 2_000 }, (_, index) => importLine(index, 'read')),
    );
    const proxy = await proxyTo(t, service.urls.app);
    const process = startImport(t, service, [file], { url: proxy.url });
    await process.until(/Importing bytes: [1-9]\d* of/);
    proxy.refuse(true);
    proxy.end();
    t.equal((await process.exited).code, 1);
    t.match(process.stdout(), /^\d+ keys were imported\.\nRun the same command again to continue/m);
    t.match(
      process.output(),
      /^latchkey: The database cannot be reached: .*Is Postgres running, and does DATABASE_URL point to it\?$/m,
    );
    proxy.refuse(false);
    const { code, stdout } = await runImport(t, service, [file], { url: proxy.url });
    t.equal(code, 0);
    t.match(stdout, /^\d+ keys were imported\.\n\d+ keys are already there/);
    t.same(await importedKeys(service), [{ keys: 2_000 }]);
  },
);

t.test('keys are recognized after the keyring was rotated, and standard input can be read', async (t) => {
  const service = await startService(t, { keyring });
  const line = `${JSON.stringify({ plaintext: foreignToken() })}\n`;
  t.match(await runImport(t, service, ['-', '--format', 'ndjson'], { input: line }), {
    code: 0,
    stdout: '1 key was imported.\n',
  });
  const rotated = await runImport(t, service, ['-', '--format', 'ndjson'], { input: line, keyring: ['two', 'one'] });
  t.match(rotated, { code: 0, stdout: '0 keys were imported.\n1 key is already there and was skipped.\n' });
});

t.test('wrong usage, organizations, files and keyrings are reported', async (t) => {
  const service = await startService(t, { keyring });
  const file = await ndjson(t, [{ plaintext: foreignToken() }]);
  const unknown = service.organizationId.replace(/.$/, (last) => (last === '0' ? '1' : '0'));
  for (const [args, run, code, expected] of [
    [[file], { organization: 'org_x' }, 2, /--organization <id>.*Must be the id of an organization/],
    [['keys.json'], {}, 2, /use '--format ndjson' or '--format csv' for this file/],
    [['-'], {}, 2, /use '--format ndjson' or '--format csv' for this file/],
    [[file], { organization: unknown }, 1, /There is no organization org_.* Nothing was imported/],
    [[`${file}x.csv`], {}, 1, /no such file or directory/],
    [[path.dirname(file), '--format', 'csv'], {}, 1, /directory/],
    [[file], { keyring: ['two'] }, 78, /keyring/i],
  ] as const) {
    const result = await runImport(t, service, [...args], {
      ...run,
      ...('keyring' in run ? { keyring: [...run.keyring] } : {}),
    } as Run);
    t.equal(result.code, code, result.output);
    t.match(result.output, expected);
    t.notMatch(result.output, /^ +at /m, 'without a stack');
  }
  t.same(await importedKeys(service), [{ keys: 0 }]);
});
