/** What uses of keys count against. */
export interface Bucket {
  /** The owner's id, or the key's for a limit of its own. */
  readonly id: string;
  readonly requests: number;
  readonly windowSeconds: number;
  /** In which window this process counted last; it says itself whether it still lasts. To look it up takes longer than to count. */
  window?: Window | undefined;
}

/** Uses that are counted together. */
export interface Window {
  readonly windowSeconds: number;
  used: number;
  /** Monotonic milliseconds. */
  endsAtMs: number;
}
