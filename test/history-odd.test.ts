import type { Test } from 'tap';
import { newId } from '../src/domain/ids.ts';
import { type Json, startService, type TestService } from './support/app.ts';
import { dbQuery } from './support/database.ts';
import { dbTamper, findByLatchkey, findByScript, sha256 } from './support/histories.ts';
import { unlessInstalled } from './support/programs.ts';
import { t } from './support/tap.ts';

// Rows that this service cannot have written. history_append rejects them; if a superuser inserts one, every view shows
// it and verification names it.

const keyId = newId('key');
const partnerId = newId('partner');

function eventAt(organizationId: string, sequence: number, change: Record<string, unknown> = {}) {
  return {
    action: 'key.revealed',
    actor: { email: null, id: 'token_x', name: 'Somebody', type: 'admin' },
    at: new Date().toISOString(),
    details: { reason: 'x' },
    id: newId('event'),
    keyId,
    organizationId,
    partnerId,
    request: { id: 'r-1', ip: '203.0.113.7', userAgent: null },
    sequence,
    ...change,
  };
}

/** What is wrong with the text, and whether its export line still verifies. */
const odd: Array<[what: string, textAt: (organizationId: string, sequence: number) => string, isValid: boolean]> = [
  ['details that are text', (id, sequence) => JSON.stringify(eventAt(id, sequence, { details: 'x' })), true],
  ['an unknown action', (id, sequence) => JSON.stringify(eventAt(id, sequence, { action: 'key.eaten' })), true],
  ['no actor', (id, sequence) => JSON.stringify(eventAt(id, sequence, { actor: undefined })), true],
  ['an actor that is null', (id, sequence) => JSON.stringify(eventAt(id, sequence, { actor: null })), true],
  ['no address', (id, sequence) => JSON.stringify(eventAt(id, sequence, { request: { id: 'r' } })), true],
  ['an unknown member', (id, sequence) => JSON.stringify({ ...eventAt(id, sequence), unreadable: true }), true],
  [
    'an unknown member of the actor',
    (id, sequence) =>
      JSON.stringify(eventAt(id, sequence, { actor: { email: null, id: 'x', name: 'x', shoe: 42, type: 'admin' } })),
    true,
  ],
  [
    'an unknown member of the request',
    (id, sequence) =>
      JSON.stringify(eventAt(id, sequence, { request: { id: 'r', ip: 'x', shoe: 42, userAgent: null } })),
    true,
  ],
  ['broken JSON', () => '{"action":', false],
  ['no JSON', () => 'x', false],
  ['a text', () => '"x"', false],
  ['null', () => 'null', false],
  ['an empty object', () => '{}', false],
  ['a line break', (id, sequence) => JSON.stringify(eventAt(id, sequence), null, 1), false],
  [
    'deep nesting',
    (id, sequence) =>
      JSON.stringify(eventAt(id, sequence, { details: { deep: '?' } })).replace(
        '"?"',
        '['.repeat(9_000) + ']'.repeat(9_000),
      ),
    false,
  ],
  [
    'more text than any event has',
    (id, sequence) => JSON.stringify(eventAt(id, sequence, { details: { long: 'x'.repeat(20_000_000) } })),
    false,
  ],
];

/** Appends rows that are valid except for their texts. @returns the sequence of the first */
async function dbAddTexts({ urls, organizationId }: TestService, texts: ReadonlyArray<(sequence: number) => string>) {
  const [head] = await dbQuery(urls.superuser, 'select sequence::int, hash from history_heads where chain = $1', [
    organizationId,
  ]);
  const first = Number(head?.['sequence']) + 1;
  let previous = head?.['hash'] as Buffer;
  for (const [index, textAt] of texts.entries()) {
    const text = textAt(first + index);
    const hash = sha256(previous, text);
    await dbQuery(
      urls.superuser,
      `insert into history (chain, sequence, id, at, action, actor_id, key_id, partner_id, canonical, previous_hash, hash)
       values ($1, $2, $3, now(), 'key.revealed', 'token_x', $4, $5, $6, $7, $8)`,
      [organizationId, first + index, newId('event'), keyId, partnerId, text, previous, hash],
    );
    previous = hash;
  }
  await dbQuery(urls.superuser, 'update history_heads set sequence = $2, hash = $3 where chain = $1', [
    organizationId,
    first + texts.length - 1,
    previous,
  ]);
  return first;
}

async function exportOf({ app, admin }: TestService): Promise<Buffer> {
  const response = await app.inject({ url: '/v1/history/export', headers: { authorization: `Bearer ${admin.token}` } });
  if (response.statusCode !== 200) throw new Error(response.body);
  return response.rawPayload;
}

t.test('an unreadable row is shown by every view', { skip: unlessInstalled('python3') }, async (t) => {
  const service = await startService(t);
  const { admin, organizationId, app } = service;
  const first = await dbAddTexts(
    service,
    odd.map(
      ([, textAt]) =>
        (sequence: number) =>
          textAt(organizationId, sequence),
    ),
  );
  const isOdd = (event: Json) => event.sequence >= first;
  for (const list of ['/v1/history', `/v1/keys/${keyId}/history`, `/v1/partners/${partnerId}/history`]) {
    const { status, body } = await admin.get(`${list}?limit=200`);
    t.equal(status, 200, list);
    const shown = (body.data as Json[]).filter(isOdd).toReversed();
    for (const [index, [what]] of odd.entries()) {
      t.match(
        shown[index],
        { unreadable: true, sequence: first + index, actor: { id: 'token_x' }, keyId, partnerId, organizationId },
        `${list}: ${what}`,
      );
    }
    t.ok((body.data as Json[]).filter((event) => !isOdd(event)).every((event) => event.unreadable === undefined));
  }

  const text = await exportOf(service);
  const lines = text.toString().trimEnd().split('\n');
  t.equal(lines.length, first - 1 + odd.length, 'one line per event');
  for (const [index, [what]] of odd.entries()) {
    const line = JSON.parse(lines[first - 1 + index] ?? '') as Json;
    t.equal(line.unreadable, true, `the export: ${what}`);
    t.match(line.hash, /^[0-9a-f]{64}$/);
  }

  const { status, body: verdict } = await admin.get('/v1/history/verify');
  t.equal(status, 200);
  const [byLatchkey, [byScript]] = [await findByLatchkey(text), findByScript(t, [text])];
  const firstBroken = first + odd.findIndex(([, , isValid]) => !isValid);
  t.equal(byLatchkey.firstBad, firstBroken, 'an export verifies if only the shape of an event is unknown');
  t.equal(byScript?.firstBad, firstBroken);
  t.ok(verdict.flaws.every((flaw: Json) => flaw.firstSequence >= first));
  t.equal(verdict.flaws.at(-1).lastSequence, first + odd.length - 1);

  const checkpoint = await app.inject({
    url: '/v1/history/checkpoint',
    headers: { authorization: `Bearer ${admin.token}` },
  });
  t.equal(checkpoint.statusCode, 200, 'checkpoints only need hashes');
  t.equal((await admin.post('/v1/keys', {})).status, 201, 'new events can be appended');
  t.notMatch(service.logLines.join(''), '"level":50');
});

t.test('viewers of a key are listed even if one of the events cannot be read', async (t) => {
  const service = await startService(t);
  const { admin, urls } = service;
  const { body: key } = await admin.post('/v1/keys', {});
  await admin.post(`/v1/keys/${key.id}/reveal`, { reason: 'Moved' });
  await admin.post(`/v1/keys/${key.id}/reveal`, { reason: 'Moved again' });
  await dbTamper(
    urls.superuser,
    `update history set canonical = '{"broken' where sequence = (select max(sequence) from history where key_id = '${key.id}')
       and key_id = '${key.id}'`,
  );
  const { status, body } = await admin.get(`/v1/keys/${key.id}/viewers`);
  t.equal(status, 200);
  t.match(body.data, [{ admin: { type: 'admin' }, times: 2, looks: [{ reason: null }, { reason: 'Moved' }] }]);
});

t.test('verification continues after a flaw and names every range', { skip: unlessInstalled('python3') }, async (t) => {
  const service = await startService(t);
  const { admin, urls, organizationId } = service;
  for (let requests = 1; requests <= 20; requests++) await admin.put('/v1/rate-limit', { requests, windowSeconds: 60 });
  const edit = (from: number, to: number) =>
    `update history set canonical = replace(canonical, 'lightMyRequest', 'somebody')
     where chain = '${organizationId}' and sequence between ${from} and ${to}`;
  await dbTamper(
    urls.superuser,
    `${edit(6, 8)}; ${edit(12, 12)};
     delete from history where chain = '${organizationId}' and sequence in (15, 16);
     ${edit(20, 20)}`,
  );
  const { body } = await admin.get('/v1/history/verify');
  t.match(body, { valid: false, events: 5, firstBadSequence: 6 });
  const text = "the event's text does not match its hash";
  t.same(body.flaws, [
    { firstSequence: 6, lastSequence: 8, reason: text },
    { firstSequence: 12, lastSequence: 12, reason: text },
    { firstSequence: 15, lastSequence: 16, reason: 'the event found here has sequence number 17' },
    { firstSequence: 20, lastSequence: 20, reason: text },
  ]);
  const exported = await exportOf(service);
  t.equal((await findByLatchkey(exported)).firstBad, 6);
  t.same(rangesByScript(t, exported), ['6', '8', '12', '15 to 16', '20']);
});

/** The ranges that the script reports for an export. */
function rangesByScript(t: Test, text: Buffer): string[] {
  const [finding] = findByScript(t, [text]);
  const more = /(?:up to event|event|events) (\d+(?: to \d+)?)/g;
  return [String(finding?.firstBad), ...[...(finding?.more ?? '').matchAll(more)].map(([, range = '']) => range)];
}

t.test('for a chain that is wrong throughout, the first hundred flaws are listed', async (t) => {
  const service = await startService(t);
  const { admin, organizationId } = service;
  // Two alternating kinds of flaws, which cannot be merged to a range.
  await dbAddTexts(
    service,
    Array.from(
      { length: 300 },
      (_, index) => (sequence: number) =>
        index % 2 === 0 ? 'x' : JSON.stringify(eventAt(organizationId, sequence, { organizationId: newId('org') })),
    ),
  );
  const { body } = await admin.get('/v1/history/verify');
  t.equal(body.flaws.length, 100);
  t.equal(body.firstBadSequence, body.flaws[0].firstSequence);
});

t.test('history_append accepts only events in canonical form', async (t) => {
  const service = await startService(t);
  const { urls, organizationId, admin } = service;
  const [head] = await dbQuery(urls.app, 'select sequence::int from history_heads where chain = $1', [organizationId]);
  const next = Number(head?.['sequence']) + 1;
  const append = (text: string) => dbQuery(urls.app, 'select history_append($1, $2)', [organizationId, text]);
  const refused: Array<[what: string, text: string]> = odd.map(([what, textAt]) => [
    what,
    textAt(organizationId, next),
  ]);
  const validEvent = () => JSON.stringify(eventAt(organizationId, next));
  // Other actions and facts are accepted, so that a newer service can use an older schema.
  const texts = [
    ...refused.filter(([what]) => !/^an unknown (action|member of)/.test(what)),
    ['an action that is no word.word', validEvent().replace('key.revealed', 'key revealed')],
    ['a blank', validEvent().replace('":', '": ')],
    ['a number in another spelling', validEvent().replace('"x"', '1.0')],
    ['more digits than the number has', validEvent().replace('"x"', '0.1000000000000000055')],
    ['more digits than the number needs', validEvent().replace('"x"', '9.999999999999999e+22')],
    ['an escape that is not needed', validEvent().replace('"x"', '"\\u0078"')],
    ['an escaped slash', validEvent().replace('"x"', '"\\/"')],
    ['U+0000', validEvent().replace('"x"', '"\\u0000"')],
    ['members in another order', validEvent().replace('"email":null,"id":"token_x"', '"id":"token_x","email":null')],
    ['a member twice', validEvent().replace('"reason":"x"', '"reason":"x","reason":"x"')],
    ['a sequence that is text', validEvent().replace(`"sequence":${next}`, `"sequence":"${next}"`)],
    ['an id of another kind', validEvent().replace('"id":"event_', '"id":"key_')],
    ['a key of another kind', validEvent().replace('"keyId":"key_', '"keyId":"token_')],
    ['a time in seconds', validEvent().replace(/\.\d{3}Z/, 'Z')],
    ['an actor without a type', validEvent().replace(',"type":"admin"', '')],
    ['a request with long facts', validEvent().replace('203.0.113.7', '7'.repeat(2_000))],
    ['132 KiB', validEvent().replace('"x"', `"${'x'.repeat(132_000)}"`)],
  ] as Array<[string, string]>;
  for (const [what, text] of texts) await t.rejects(append(text), { code: /^(23514|22|54001)/ }, what);
  t.match((await admin.get('/v1/history/verify')).body, { valid: true, flaws: [] });
  await append(
    JSON.stringify(
      eventAt(organizationId, next, {
        details: {
          '\u20ac': [1e21, 1e23, 8.41e21, 9007199254740992, 2 ** 70],
          '\u{1f600}': [1.5e-7, '\\u0078"\n'],
          '\ufb00': {},
        },
      }),
    ),
  );
  t.match((await admin.get('/v1/history/verify')).body, { flaws: [], firstBadSequence: null });
});

t.test('nobody can date an event ahead of the clock, neither in one step nor in many', async (t) => {
  const { urls, organizationId } = await startService(t);
  const sequenceOf = async () => {
    const [head] = await dbQuery(urls.app, 'select sequence::int from history_heads where chain = $1', [
      organizationId,
    ]);
    return Number(head?.['sequence']);
  };
  const append = async (at: Date) => {
    const text = JSON.stringify(eventAt(organizationId, (await sequenceOf()) + 1, { at: at.toISOString() }));
    return dbQuery(urls.app, 'select history_append($1, $2)', [organizationId, text]);
  };
  const before = await sequenceOf();
  const [now] = await dbQuery(urls.app, 'select clock_timestamp() as at');
  const started = Number(now?.['at']);
  await t.rejects(append(new Date(started + 59_000)), { code: '23514' }, '59 seconds ahead');
  await t.rejects(append(new Date(started + 5_000)), { code: '23514' }, 'a few seconds ahead');
  await t.rejects(append(new Date(started - 3_600_000)), { code: '23514' }, 'an hour back');
  const inNewChain = newId('org');
  await dbQuery(urls.app, 'select history_begin($1)', [inNewChain]);
  const first = JSON.stringify(eventAt(inNewChain, 1, { at: new Date(started - 120_000).toISOString() }));
  await t.rejects(
    dbQuery(urls.app, 'select history_append($1, $2)', [inNewChain, first]),
    { code: '23514' },
    'two minutes back, in an empty chain',
  );
  const soon = JSON.stringify(eventAt(organizationId, before + 1, { at: 'soon' }));
  await t.rejects(
    dbQuery(
      urls.app,
      `select history_append($1, replace($2, 'soon',
         to_char((clock_timestamp() + interval '500 ms') at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"')))`,
      [organizationId, soon],
    ),
    { code: '23514', message: /is not now/ },
    'half a second ahead',
  );
  t.equal(await sequenceOf(), before);
  await append(new Date(started));
});
