import { writeFileSync } from 'node:fs';
import path from 'node:path';
import type { Test } from 'tap';
import { startService, type TestService } from './support/app.ts';
import {
  checkpointsIn,
  dbTamper,
  type Finding,
  findByLatchkey,
  findByScript,
  inChain,
  rehashFrom,
  scratchFolder,
} from './support/histories.ts';
import { keyringOf, keyringText } from './support/keyrings.ts';
import { runEntry } from './support/process.ts';
import { unlessInstalled } from './support/programs.ts';
import { t } from './support/tap.ts';

// An attacker has full access to the database. Changes are found by the service, by `latchkey audit verify` with and
// without the database, and by the independent script.

const events = 10;

/** An organization with its history, and checkpoints of its first four events and of all ten. */
interface SignedHistory {
  chain: string;
  change(requests: number): Promise<unknown>;
  /** The text of a GET reply, which is not always JSON. */
  read(path: string): Promise<string>;
  signed: string;
}

async function startHistory({ app, operator }: TestService, name: string): Promise<SignedHistory> {
  const { body } = await operator.post('/v1/organizations', { name });
  const named = { 'latchkey-organization': body.id as string };
  const read = async (url: string) =>
    (await app.inject({ url, headers: { authorization: `Bearer ${operator.token}`, ...named } })).body;
  const change = (requests: number) =>
    operator.put('/v1/rate-limit', { requests, windowSeconds: 60 + requests }, named);
  for (let sequence = 2; sequence <= 4; sequence++) await change(sequence);
  const firstNote = await read('/v1/history/checkpoint');
  for (let sequence = 5; sequence <= events; sequence++) await change(sequence);
  return { chain: body.id, change, read, signed: `${firstNote}\n${await read('/v1/history/checkpoint')}` };
}

async function audit(t: Test, args: string[], env: NodeJS.ProcessEnv) {
  const process = runEntry(t, 'cli/latchkey.ts', ['audit', 'verify', ...args], { env });
  const { code } = await process.exited;
  return { code, output: process.output() };
}

/** The first bad event of one chain and the reason; empty if the chain is valid. */
function findingIn(output: string, chain: string): Partial<Finding> {
  const [, sequence, why] =
    new RegExp(`^wrong {3}${chain}: the first bad event is (-?\\d+): (.*)$`, 'm').exec(output) ?? [];
  if (sequence === undefined && !output.includes(`ok      ${chain}: `)) throw new Error(`${chain} is not in ${output}`);
  return { firstBad: sequence === undefined ? undefined : Number(sequence), why: why ?? '' };
}

const tamper = (url: string, chain: string, statements: string) =>
  dbTamper(
    url,
    `alter table history drop constraint if exists history_sequence_positive; ${inChain(chain, `${statements};`)}`,
  );

interface Tampering {
  what: string;
  /** In PL/pgSQL; see `inChain`. */
  sql: string;
  /** A request through the API afterwards. */
  afterwards?: (signedHistory: SignedHistory) => Promise<unknown>;
  /** Where the chain alone shows it, and where a checkpoint of all events shows it. */
  alone: number | undefined;
  compared: number;
  /** The reason that `latchkey audit verify` reports. */
  named: RegExp;
}

const edit = (sequence: number) =>
  `update history set canonical = replace(canonical, 'lightMyRequest', 'somebody') where chain = c and sequence = ${sequence}`;
const cutTo = (keep: number) =>
  `delete from history where chain = c and sequence > ${keep};
   update history_heads set sequence = ${keep}, hash = (select hash from history where chain = c and sequence = ${keep}) where chain = c`;

const tamperings: Tampering[] = [
  { what: 'an edit', sql: edit(6), alone: 6, compared: 6, named: /the event's text does not match its hash/ },
  {
    what: 'an edit with its own hash',
    sql: `${edit(6)}; update history set hash = sha256(previous_hash || convert_to(canonical, 'UTF8')) where chain = c and sequence = 6`,
    alone: 7,
    compared: 7,
    named: /the event does not follow the previous event/,
  },
  {
    what: 'a deletion',
    sql: 'delete from history where chain = c and sequence = 6',
    alone: 6,
    compared: 6,
    named: /the event found here has sequence number 7/,
  },
  {
    what: 'a swap',
    sql: `update history set sequence = case sequence when 5 then -6 else -5 end where chain = c and sequence in (5, 6);
      update history set sequence = -sequence where chain = c and sequence < 0`,
    alone: 5,
    compared: 5,
    named: /the event found here has sequence number 6/,
  },
  {
    what: 'a cut tail, as in an old backup',
    sql: cutTo(7),
    alone: undefined,
    compared: 8,
    named: /has signed 10 events: the tail was cut, or this is an older backup/,
  },
  {
    what: 'an old backup that was continued',
    sql: cutTo(7),
    afterwards: async ({ change }) => {
      for (let requests = 100; requests < 105; requests++) await change(requests);
    },
    alone: undefined,
    compared: 5,
    named: /the events up to 10 differ .*the chain was rewritten, or continued from an older backup/,
  },
  {
    what: 'a rewrite of the whole chain',
    sql: `update history set canonical = replace(canonical, 'First operator', 'Another operator') where chain = c; ${rehashFrom(1)}`,
    alone: undefined,
    compared: 1,
    named: /the events up to 4 differ .*the chain was rewritten/,
  },
  {
    what: 'a rewrite from an event on',
    sql: `${edit(6)}; ${rehashFrom(6)}`,
    alone: undefined,
    compared: 5,
    named: /the events up to 10 differ .*the chain was rewritten/,
  },
];

t.test('tampering is found by every way of verification', { skip: unlessInstalled('openssl') }, async (t) => {
  const service = await startService(t, { keyring: keyringOf('evidence') });
  const { urls } = service;
  const histories: SignedHistory[] = [];
  for (const { what, sql, afterwards } of tamperings) {
    const history = await startHistory(service, what);
    await tamper(urls.superuser, history.chain, sql);
    await afterwards?.(history);
    histories.push(history);
  }
  const exports = await Promise.all(histories.map(({ read }) => read('/v1/history/export')));
  const buffers = exports.map((text) => Buffer.from(text));
  const notes = histories.map(({ signed }) => signed).join('\n');
  const publicKey = (await service.app.inject('/.well-known/latchkey-history-key')).body;
  const file = (name: string, text: string) => {
    writeFileSync(path.join(folder, name), text);
    return path.join(folder, name);
  };
  const folder = scratchFolder(t);
  const comparing = ['--checkpoint', file('checkpoints', notes)];

  const env = { DATABASE_URL: urls.app, LATCHKEY_KEYRING: keyringText('evidence') };
  const online = { alone: await audit(t, [], env), compared: await audit(t, comparing, env) };
  t.same([online.alone.code, online.compared.code], [1, 1]);
  const byScript = { alone: findByScript(t, buffers), compared: findByScript(t, buffers, { notes, publicKey }) };
  for (const [index, { what, alone, compared, named }] of tamperings.entries()) {
    const { chain, read, signed } = histories[index] ?? (await startHistory(service, 'never'));
    t.equal(JSON.parse(await read('/v1/history/verify')).firstBadSequence ?? undefined, alone, `the service: ${what}`);
    t.equal(findingIn(online.alone.output, chain).firstBad, alone, `audit verify: ${what}`);
    t.match(findingIn(online.compared.output, chain), { firstBad: compared, why: named }, `with checkpoints: ${what}`);
    const buffer = buffers[index] ?? Buffer.alloc(0);
    const checkpoints = [...checkpointsIn(signed)];
    t.equal((await findByLatchkey(buffer)).firstBad, alone, `an export: ${what}`);
    t.match(
      await findByLatchkey(buffer, checkpoints),
      { firstBad: compared, why: named },
      `an export with checkpoints: ${what}`,
    );
    t.equal(byScript.alone[index]?.firstBad, alone, `the script: ${what}`);
    t.equal(byScript.compared[index]?.firstBad, compared, `the script, with checkpoints: ${what}`);
  }

  const [chain = ''] = histories.map((history) => history.chain).slice(4);
  const offline = ['--export', file('export', exports[4] ?? ''), ...comparing, '--public-key', file('key', publicKey)];
  const found = await audit(t, offline, {});
  t.equal(found.code, 1);
  t.match(
    findingIn(found.output, chain),
    { firstBad: 8, why: /this is an older backup/ },
    'the command, without a database',
  );
});

t.test('tampering that only the database shows is found', async (t) => {
  const table: Array<[what: string, sql: string, firstBad: number, named: RegExp]> = [
    [
      'a tail that was cut without its head',
      'delete from history where chain = c and sequence > 7',
      8,
      /the chain's head counts 10 events: the tail was cut/,
    ],
    [
      'a column that contradicts its event',
      `update history set actor_id = 'token_x' where chain = c and sequence = 5`,
      5,
      /the row's columns differ from the event's text/,
    ],
    [
      'a head with another hash',
      `update history_heads set hash = sha256('x') where chain = c`,
      10,
      /the hash of the chain's head differs/,
    ],
    [
      'an event after the head',
      `update history_heads set sequence = 9, hash = (select hash from history where chain = c and sequence = 9) where chain = c`,
      10,
      /outside the chain/,
    ],
    [
      'an event before the first',
      `insert into history select c, -3, id || 'x', at, action, actor_id, key_id, partner_id, canonical, previous_hash, hash from history where chain = c and sequence = 1`,
      -3,
      /outside the chain/,
    ],
    [
      'a text that is not JSON',
      `update history set canonical = 'x' where chain = c and sequence = 4`,
      4,
      /the event's text is not canonical JSON \(RFC 8785\)/,
    ],
    [
      'a number that JSON cannot hold',
      `update history set canonical = replace(canonical, '"keyId":null', '"keyId":1e999') where chain = c and sequence = 4`,
      4,
      /the event's text is not canonical JSON \(RFC 8785\)/,
    ],
  ];
  const service = await startService(t, { keyring: keyringOf('evidence') });
  const { urls } = service;
  const histories: SignedHistory[] = [];
  for (const [what, sql] of table) {
    const history = await startHistory(service, what);
    await tamper(urls.superuser, history.chain, sql);
    histories.push(history);
  }
  const { code, output } = await audit(t, [], { DATABASE_URL: urls.app });
  t.equal(code, 1);
  for (const [index, [what, , firstBad, named]] of table.entries()) {
    const { chain, read } = histories[index] ?? (await startHistory(service, 'never'));
    const verdict = JSON.parse(await read('/v1/history/verify'));
    t.match(verdict, { valid: false, firstBadSequence: firstBad }, `the service: ${what}`);
    t.match(findingIn(output, chain), { firstBad, why: named }, `the command: ${what}`);
  }
  t.equal(findingIn(output, service.organizationId).firstBad, undefined, 'other chains are not affected');
  t.equal(findingIn(output, 'installation').firstBad, undefined);
});
