import { randomInt } from 'node:crypto';

declare const brand: unique symbol;

/** A SHA-256 as text: 32 characters, each for one byte. */
export type Fingerprint = string & { readonly [brand]: 'fingerprint' };

/** Of 32 bits. */
const wordsEach = 8;

const placesAtFirst = 1_024;

/**
 * Places, which are small whole numbers, by fingerprints: a hash table with open addressing and linear probing (Knuth, The Art
 * of Computer Programming, volume 3, section 6.4, algorithms L and R). A `Map` by text touches its bucket, its entry, and the text of
 * its key, one after the other, and with many keys none of them is in the processor's cache. Here a slot tells the place, and at
 * the place lies the fingerprint. Its first bits are mixed with a number that is made at random: who makes keys could otherwise
 * present only those of them that come to lie side by side, and each search among them would take long.
 */
export class Fingerprints {
  readonly #multiplier: number;
  /** Of each place, where it has one. */
  #words = new Int32Array(placesAtFirst * wordsEach);
  /** Each place that has a fingerprint, plus 1; 0: free. At least half of them are, and their number is a power of two. */
  #slots = new Int32Array(placesAtFirst * 2);

  /** @param multiplier odd, so that different words stay different; tests choose it */
  constructor(multiplier: number = randomInt(2 ** 31) * 2 + 1) {
    this.#multiplier = multiplier;
  }

  /** @returns -1 where it has none */
  placeOf(fingerprint: Fingerprint): number {
    const mask = this.#slots.length - 1;
    const first = wordOf(fingerprint, 0);
    for (let slot = this.#homeOf(first); ; slot = (slot + 1) & mask) {
      const place = (this.#slots[slot] ?? 0) - 1;
      if (place < 0) return -1;
      if (this.#words[place * wordsEach] === first && this.#isAt(place, fingerprint)) return place;
    }
  }

  /** A place has one fingerprint, and a fingerprint one place: what was there before is forgotten. */
  set(place: number, fingerprint: Fingerprint): void {
    this.delete(place);
    this.delete(this.placeOf(fingerprint));
    while ((place + 1) * wordsEach > this.#words.length) this.#grow();
    for (let word = 0; word < wordsEach; word++) this.#words[place * wordsEach + word] = wordOf(fingerprint, word);
    this.#enter(place);
  }

  /** Nothing where it has none. */
  delete(place: number): void {
    const mask = this.#slots.length - 1;
    let free = this.#slotOf(place);
    if (free < 0) return;
    // Those behind it move up, unless they would come to lie before the slot at which they are looked for first.
    for (let slot = (free + 1) & mask; this.#slots[slot] !== 0; slot = (slot + 1) & mask) {
      const moved = this.#slots[slot] ?? 0;
      const distance = (slot - this.#homeOfPlace(moved - 1)) & mask;
      if (distance < ((slot - free) & mask)) continue;
      this.#slots[free] = moved;
      free = slot;
    }
    this.#slots[free] = 0;
  }

  /** What is at one place is at the other from now on. */
  move(from: number, to: number): void {
    if (from === to) return;
    this.delete(to);
    const slot = this.#slotOf(from);
    if (slot < 0) return;
    this.#words.copyWithin(to * wordsEach, from * wordsEach, (from + 1) * wordsEach);
    this.#slots[slot] = to + 1;
  }

  clear(): void {
    this.#words = new Int32Array(placesAtFirst * wordsEach);
    this.#slots = new Int32Array(placesAtFirst * 2);
  }

  #isAt(place: number, fingerprint: Fingerprint): boolean {
    for (let word = 1; word < wordsEach; word++) {
      if (this.#words[place * wordsEach + word] !== wordOf(fingerprint, word)) return false;
    }
    return true;
  }

  /** At which a fingerprint with this first word is looked for first: the upper bits of the product depend on all of the word's. */
  #homeOf(firstWord: number): number {
    const mask = this.#slots.length - 1;
    return (Math.imul(firstWord, this.#multiplier) >>> Math.clz32(mask)) & mask;
  }

  #homeOfPlace(place: number): number {
    return this.#homeOf(this.#words[place * wordsEach] ?? 0);
  }

  /** @returns -1 where it has no fingerprint */
  #slotOf(place: number): number {
    const mask = this.#slots.length - 1;
    for (let slot = this.#homeOfPlace(place); ; slot = (slot + 1) & mask) {
      const there = (this.#slots[slot] ?? 0) - 1;
      if (there < 0) return -1;
      if (there === place) return slot;
    }
  }

  #enter(place: number): void {
    const mask = this.#slots.length - 1;
    let slot = this.#homeOfPlace(place);
    while (this.#slots[slot] !== 0) slot = (slot + 1) & mask;
    this.#slots[slot] = place + 1;
  }

  #grow(): void {
    const [words, slots] = [this.#words, this.#slots];
    this.#words = new Int32Array(words.length * 2);
    this.#words.set(words);
    this.#slots = new Int32Array(slots.length * 2);
    for (const entry of slots) if (entry !== 0) this.#enter(entry - 1);
  }
}

function wordOf(fingerprint: Fingerprint, word: number): number {
  const at = word * 4;
  return (
    fingerprint.charCodeAt(at) |
    (fingerprint.charCodeAt(at + 1) << 8) |
    (fingerprint.charCodeAt(at + 2) << 16) |
    (fingerprint.charCodeAt(at + 3) << 24)
  );
}
