import { hash } from 'node:crypto';
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import fc from 'fast-check';
import t from 'tap';
import type { Fingerprint } from '../src/core/fingerprints.ts';
import { KeptRecord, KeptRecords } from '../src/core/kept-records.ts';

setFlagsFromString('--expose-gc');
const collect = runInNewContext('gc') as () => void;

class Note extends KeptRecord {
  readonly id: string;

  constructor(id: string) {
    super();
    this.id = id;
  }
}

const fingerprint = (text: string) => hash('sha256', text, 'binary') as Fingerprint;

function keep(capacity: number) {
  const gone: Note[] = [];
  return { records: new KeptRecords<string, Note>(capacity, (record) => void gone.push(record)), gone };
}

t.test('what is asked for again and again stays, however many others are seen once', async (t) => {
  const { records, gone } = keep(100);
  const hot = Array.from({ length: 40 }, (_, number) => `hot ${number}`);
  let read = 0;
  const ask = (id: string) => {
    if (records.get(id) !== undefined) return;
    read += 1;
    records.add(new Note(id));
  };
  for (let number = 0; number < 5_000; number++) {
    for (const id of hot) ask(id);
    records.add(new Note(`cold ${number}`));
  }
  t.equal(records.size, 100);
  // Each once, and one more whenever the hand has come round and found nothing that was not used.
  t.ok(read <= 2 * hot.length, `${read} reads for 200,000 questions`);
  t.equal(gone.length, 5_000 + read - 100);
});

t.test('new ones take the room of those that nobody asks for any more, used or not', async (t) => {
  const { records } = keep(100);
  for (let number = 0; number < 100; number++) records.add(new Note(`old ${number}`));
  for (let number = 0; number < 1_000; number++) records.get(`old ${number % 99}`);
  for (let number = 0; number < 50; number++) records.add(new Note(`new ${number}`));
  const stayed = Array.from({ length: 50 }, (_, number) => records.get(`new ${number}`)).filter(Boolean);
  t.equal(stayed.length, 50);
});

t.test('what is looked at again without its id stays too, and is not taken for what has replaced it', async (t) => {
  const { records } = keep(100);
  const hot = Array.from({ length: 40 }, (_, number) => new Note(`hot ${number}`));
  let added = 0;
  for (let number = 0; number < 5_000; number++) {
    for (const record of hot) {
      if (records.again(record) !== undefined) continue;
      added += 1;
      records.add(record);
    }
    records.add(new Note(`cold ${number}`));
  }
  t.ok(added <= 2 * hot.length, `${added} added for 200,000 looks`);
  const [first, second] = [new Note('a'), new Note('a')];
  records.add(first);
  t.equal(records.again(first), first);
  records.add(second);
  t.same([records.again(first), records.again(second)], [undefined, second]);
  records.clear();
  t.equal(records.again(second), undefined);
});

t.test('a copy that is not kept any more gets no fingerprint, and what is gone is not found by one', async (t) => {
  const { records } = keep(10);
  const [first, second] = [new Note('a'), new Note('a')];
  records.add(first);
  records.setFingerprint(first, fingerprint('by secret'));
  t.equal(records.getByFingerprint(fingerprint('by secret')), first);
  records.add(second);
  t.equal(
    records.getByFingerprint(fingerprint('by secret')),
    undefined,
    'the copy before is gone with its fingerprint',
  );
  records.setFingerprint(first, fingerprint('by secret'));
  t.equal(records.getByFingerprint(fingerprint('by secret')), undefined, 'and does not come back by it');
  records.setFingerprint(second, fingerprint('one'));
  records.setFingerprint(second, fingerprint('other'));
  t.same(
    [records.getByFingerprint(fingerprint('one')), records.getByFingerprint(fingerprint('other'))],
    [undefined, second],
  );
  records.delete('a');
  t.equal(records.getByFingerprint(fingerprint('other')), undefined);
});

t.test('what is not kept any more is collected, also while no room has to be made', async (t) => {
  const records = new KeptRecords<string, Note>(200_000, () => undefined);
  const heldBytes = () => {
    collect();
    return process.memoryUsage().heapUsed;
  };
  const fill = (turn: number) => {
    for (let number = 0; number < 20_000; number++) records.add(new Note(`${number}`));
    if (turn % 2 === 0) records.clear();
  };
  fill(1);
  const beforeBytes = heldBytes();
  for (let turn = 2; turn < 12; turn++) fill(turn);
  const grownBytes = heldBytes() - beforeBytes;
  t.equal(records.size, 20_000);
  t.ok(grownBytes < 2_000_000, `${Math.round(grownBytes / 1000)} KB more after 200,000 others`);
});

type Act = { what: 'add' | 'get' | 'name' | 'delete' | 'clear'; id: string };

t.test('whatever happens: never too many, never another copy, and each that goes is told of once', async (t) => {
  const acts = fc.array(
    fc.record<Act>({
      what: fc.constantFrom('add', 'add', 'add', 'get', 'name', 'delete', 'clear'),
      id: fc.nat(12).map(String),
    }),
    { maxLength: 300 },
  );
  const holds = fc.property(acts, fc.integer({ min: 1, max: 8 }), (sequence, capacity) => {
    const { records, gone } = keep(capacity);
    const latest = new Map<string, Note>();
    let [added, cleared] = [0, 0];
    for (const { what, id } of sequence) {
      const note = latest.get(id);
      if (what === 'add') {
        const made = new Note(id);
        records.add(made);
        latest.set(id, made);
        added += 1;
        if (records.get(id) !== made) return false;
      } else if (what === 'name' && note !== undefined) records.setFingerprint(note, fingerprint(`secret of ${id}`));
      else if (what === 'delete') records.delete(id);
      else if (what === 'clear') {
        cleared += records.size;
        records.clear();
      }
      if (records.size > capacity || new Set(gone).size !== gone.length) return false;
      if (added !== records.size + gone.length + cleared) return false;
      for (const [known, copy] of latest) {
        const [byId, byName] = [records.get(known), records.getByFingerprint(fingerprint(`secret of ${known}`))];
        if (byId !== undefined && byId !== copy) return false;
        if (byName !== undefined && byName !== byId) return false;
      }
    }
    return true;
  });
  t.doesNotThrow(() => fc.assert(holds, { numRuns: 500 }));
});
