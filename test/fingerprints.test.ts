import fc from 'fast-check';
import t from 'tap';
import { type Fingerprint, Fingerprints } from '../src/core/fingerprints.ts';

/** @param home its first 32 bits, by which it is looked for @param rest the others */
function fingerprint(home: number, rest: number): Fingerprint {
  const bytes = Buffer.alloc(32, 0xfe);
  bytes.writeInt32LE(home, 0);
  bytes.writeInt32LE(rest, 28);
  return bytes.toString('latin1') as Fingerprint;
}

/** Few, next to each other and at both ends of 2,048 slots, so that many come to lie in each other's way. */
const homes = [0, 1, 2, 2_046, 2_047, 1_024].map((slot) => slot << 21);
const anyFingerprint = fc.tuple(fc.constantFrom(...homes), fc.nat(3)).map(([home, rest]) => fingerprint(home, rest));
const anyPlace = fc.nat(40);

type Act =
  | { what: 'set'; place: number; fingerprint: Fingerprint }
  | { what: 'delete'; place: number }
  | { what: 'move'; from: number; to: number }
  | { what: 'clear' };

const anyAct: fc.Arbitrary<Act> = fc.oneof(
  { weight: 6, arbitrary: fc.record({ what: fc.constant('set'), place: anyPlace, fingerprint: anyFingerprint }) },
  { weight: 2, arbitrary: fc.record({ what: fc.constant('delete'), place: anyPlace }) },
  { weight: 2, arbitrary: fc.record({ what: fc.constant('move'), from: anyPlace, to: anyPlace }) },
  { weight: 1, arbitrary: fc.record({ what: fc.constant('clear') }) },
) as fc.Arbitrary<Act>;

/** What a place has, in the plainest way. */
class Model {
  readonly #byPlace = new Map<number, Fingerprint>();

  act(act: Act): void {
    if (act.what === 'clear') this.#byPlace.clear();
    else if (act.what === 'delete') this.#byPlace.delete(act.place);
    else if (act.what === 'set') {
      for (const [place, known] of this.#byPlace) if (known === act.fingerprint) this.#byPlace.delete(place);
      this.#byPlace.set(act.place, act.fingerprint);
    } else if (act.from !== act.to) {
      const moved = this.#byPlace.get(act.from);
      this.#byPlace.delete(act.from);
      this.#byPlace.delete(act.to);
      if (moved !== undefined) this.#byPlace.set(act.to, moved);
    }
  }

  placeOf(fingerprint: Fingerprint): number {
    for (const [place, known] of this.#byPlace) if (known === fingerprint) return place;
    return -1;
  }
}

t.test('whatever was set, moved and deleted: each is found at its place, and nothing else is', async (t) => {
  const all = homes.flatMap((home) => [0, 1, 2, 3].map((rest) => fingerprint(home, rest)));
  const holds = fc.property(fc.array(anyAct, { maxLength: 80 }), (acts) => {
    const [fingerprints, model] = [new Fingerprints(1), new Model()];
    for (const act of acts) {
      model.act(act);
      if (act.what === 'clear') fingerprints.clear();
      else if (act.what === 'delete') fingerprints.delete(act.place);
      else if (act.what === 'set') fingerprints.set(act.place, act.fingerprint);
      else fingerprints.move(act.from, act.to);
      for (const one of all) if (fingerprints.placeOf(one) !== model.placeOf(one)) return false;
    }
    return true;
  });
  t.doesNotThrow(() => fc.assert(holds, { numRuns: 1_000 }));
});

t.test('each of the 256 bits counts', async (t) => {
  const fingerprints = new Fingerprints();
  const bytes = Buffer.alloc(32, 0x55);
  const asText = () => bytes.toString('latin1') as Fingerprint;
  fingerprints.set(7, asText());
  for (let bit = 0; bit < 256; bit++) {
    const before = bytes[bit >> 3] ?? 0;
    bytes[bit >> 3] = before ^ (1 << (bit & 7));
    if (fingerprints.placeOf(asText()) !== -1) t.fail(`bit ${bit} does not count`);
    bytes[bit >> 3] = before;
  }
  t.equal(fingerprints.placeOf(asText()), 7);
});

t.test('keys that were chosen for how they begin do not make a search longer', async (t) => {
  const anywhere = (number: number) => Math.imul(number, 0x9e37_79b1);
  const takenMs = (fingerprints: Fingerprints, first: (number: number) => number) => {
    for (let place = 0; place < 60_000; place++) fingerprints.set(place, fingerprint(first(place), place));
    const asked = Array.from({ length: 20_000 }, (_, number) => fingerprint(first(number * 3), -1));
    const startedAtMs = performance.now();
    for (const one of asked) fingerprints.placeOf(one);
    return performance.now() - startedAtMs;
  };
  takenMs(new Fingerprints(), anywhere);
  const [chosen, usual] = [takenMs(new Fingerprints(), (number) => number), takenMs(new Fingerprints(), anywhere)];
  t.ok(chosen < 30 * usual + 20, `${chosen} ms instead of ${usual} ms`);
});

t.test('it grows, and all are still found', async (t) => {
  const fingerprints = new Fingerprints();
  const of = (place: number) => fingerprint(Math.imul(place, 0x9e37_79b1), place);
  const places = Array.from({ length: 20_000 }, (_, place) => place);
  for (const place of places) fingerprints.set(place, of(place));
  t.ok(places.every((place) => fingerprints.placeOf(of(place)) === place));
  for (const place of places) if (place % 2 === 0) fingerprints.delete(place);
  t.ok(places.every((place) => fingerprints.placeOf(of(place)) === (place % 2 === 0 ? -1 : place)));
});
