import { type Fingerprint, Fingerprints } from './fingerprints.ts';

/** A record that can be kept. What whoever keeps it notes of it lies in it, so that a use looks at one place and not at two. */
export class KeptRecord {
  /** Monotonic milliseconds. */
  loadedAtMs = 0;
  /** Since the hand passed it last. A new one counts as used, or the hand would take it and leave those that nobody asks for. */
  wasUsed = true;
  /** In the clock's face. */
  place = -1;
}

/** How many used ones the hand passes before it takes one all the same: nobody waits for a whole round. */
const passedAtMost = 100;

/**
 * Records by their id, and by a fingerprint that they may have, up to a bound. Which one makes room is decided by the clock
 * algorithm (also known as second chance): a hand goes round and takes the first that was not used since it came by last. A
 * use only sets a mark on what is being looked at anyway, where a list in the order of use would touch four more places, which
 * with many records are not in the processor's cache.
 */
export class KeptRecords<Id extends string, Found extends KeptRecord & { id: Id }> {
  readonly #byId = new Map<Id, Found>();
  readonly #capacity: number;
  readonly #onGone: (found: Found) => void;
  /** The clock's face. Not the map's own order: an iterator that rests keeps whatever the map has held since it rests. */
  readonly #face: Found[] = [];
  /** Of the places in it. */
  readonly #fingerprints = new Fingerprints();
  #hand = 0;

  /** @param onGone told of each record that is not kept any more, unless all are gone by `clear` */
  constructor(capacity: number, onGone: (found: Found) => void) {
    this.#capacity = capacity;
    this.#onGone = onGone;
  }

  get size(): number {
    return this.#byId.size;
  }

  /** Counts as a use. */
  get(id: Id): Found | undefined {
    return use(this.#byId.get(id));
  }

  /** Counts as a use. */
  getByFingerprint(fingerprint: Fingerprint): Found | undefined {
    const place = this.#fingerprints.placeOf(fingerprint);
    return place < 0 ? undefined : use(this.#face[place]);
  }

  /** This record, where just this copy is still kept. Counts as a use. */
  again(record: Found): Found | undefined {
    return use(this.has(record) ? record : undefined);
  }

  /** Whether just this copy is kept. */
  has(record: Found): boolean {
    return this.#face[record.place] === record;
  }

  /** @returns what was kept by this id, and is replaced */
  add(record: Found): Found | undefined {
    const before = this.#byId.get(record.id);
    this.delete(record.id);
    if (this.#byId.size >= this.#capacity) this.#makeRoom();
    record.loadedAtMs = Math.round(performance.now());
    record.place = this.#face.push(record) - 1;
    this.#byId.set(record.id, record);
    return before;
  }

  /** Lets a record be found by this too, instead of another that it had; nothing, where just this copy is not kept. */
  setFingerprint(record: Found, fingerprint: Fingerprint): void {
    if (this.has(record)) this.#fingerprints.set(record.place, fingerprint);
  }

  delete(id: Id): void {
    const record = this.#byId.get(id);
    if (record === undefined) return;
    this.#byId.delete(id);
    this.#leave(record);
    this.#onGone(record);
  }

  clear(): void {
    if (this.size === 0) return;
    this.#byId.clear();
    this.#face.length = 0;
    this.#fingerprints.clear();
    this.#hand = 0;
  }

  /** The last one takes its place. */
  #leave({ place }: Found): void {
    const last = this.#face.pop();
    if (last === undefined) return;
    if (last.place === place) {
      this.#fingerprints.delete(place);
      return;
    }
    this.#fingerprints.move(last.place, place);
    this.#face[place] = last;
    last.place = place;
  }

  #makeRoom(): void {
    for (let passed = 0; ; passed++) {
      if (this.#hand >= this.#face.length) this.#hand = 0;
      const record = this.#face[this.#hand];
      if (record === undefined) return;
      this.#hand += 1;
      if (!record.wasUsed || passed === passedAtMost) {
        this.delete(record.id);
        return;
      }
      record.wasUsed = false;
    }
  }
}

function use<Found extends KeptRecord>(record: Found | undefined): Found | undefined {
  if (record !== undefined) record.wasUsed = true;
  return record;
}
