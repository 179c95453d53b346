/** A map of limited size: a new entry replaces the least recently used one. */
export class LruMap<Key, Value> {
  /** In the order of use, the least recent first. */
  readonly #entries = new Map<Key, Value>();
  readonly #capacity: number;
  readonly #onRemoved: (value: Value) => void;
  /** The key that was used last: using it again changes nothing. */
  #newest: Key | undefined;

  /** @param onRemoved called for each value that is deleted, replaced or dropped */
  constructor(capacity: number, onRemoved: (value: Value) => void = () => undefined) {
    this.#capacity = capacity;
    this.#onRemoved = onRemoved;
  }

  /** Counts as a use. */
  get(key: Key): Value | undefined {
    const value = this.#entries.get(key);
    if (value === undefined || key === this.#newest) return value;
    this.#entries.delete(key);
    this.#entries.set(key, value);
    this.#newest = key;
    return value;
  }

  /** Does not count as a use. */
  peek(key: Key): Value | undefined {
    return this.#entries.get(key);
  }

  set(key: Key, value: Value): void {
    this.delete(key);
    this.#entries.set(key, value);
    this.#newest = key;
    if (this.#entries.size <= this.#capacity) return;
    for (const [oldest] of this.#entries) {
      this.delete(oldest);
      break;
    }
  }

  delete(key: Key): void {
    const value = this.#entries.get(key);
    if (value === undefined) return;
    this.#entries.delete(key);
    this.#onRemoved(value);
  }

  clear(): void {
    for (const key of [...this.#entries.keys()]) this.delete(key);
  }
}
