/** What uses of keys count against. */
export interface Bucket {
  /** The owner's id. For a limit of the key's own: the first key of the rotations that led to this key. */
  readonly id: string;
  readonly requests: number;
  readonly windowSeconds: number;
  /** The window that this process counted in last, if it still lasts. A lookup takes longer than counting. */
  window?: Window | undefined;
}

/** Uses that are counted together. */
export interface Window {
  used: number;
  /** Of those used: counted in this process alone, where Redis could not be asked. */
  unshared: number;
  /** Monotonic milliseconds. */
  endsAtMs: number;
  /** When Redis last confirmed what is used; monotonic milliseconds. */
  sharedAtMs: number;
}
