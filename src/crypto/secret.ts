import { inspect } from 'node:util';

/** A plaintext that cannot be printed by accident: everything but `reveal()` returns `[secret]`. */
export class Secret {
  readonly #text: string;

  constructor(text: string) {
    this.#text = text;
  }

  /** The only way to read the plaintext. Search for its callers to find every place that handles one. */
  reveal(): string {
    return this.#text;
  }

  toString(): string {
    return '[secret]';
  }

  toJSON(): string {
    return '[secret]';
  }

  [inspect.custom](): string {
    return '[secret]';
  }
}
