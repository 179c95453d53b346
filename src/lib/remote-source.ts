/** Something that is fetched from another server from time to time, such as a list of public keys. */
export interface RemoteSource<Value> {
  /** Fails at once within the pause after a failure. @throws the cause of the last failure */
  fetch(signal: AbortSignal): Promise<Value>;
  /** Time since the last successful fetch; infinite if there was none. */
  ageMs(): number;
}

/** How long fetched keys are used. */
export interface KeyTimings {
  /** Keys older than this are fetched again; meanwhile they stay valid. */
  refreshMs: number;
  /** Keys older than this are not trusted any more: one may have been withdrawn. */
  keptMs: number;
  /** An unknown key causes another fetch, but not sooner than this after the last one: anybody can name unknown keys. */
  cooldownMs: number;
  /** The pause after a failed fetch. */
  retryMs: number;
  timeoutMs: number;
}

interface RemoteSourceOptions<Value> {
  load: (signal: AbortSignal) => Promise<Value>;
  retryMs: number;
  /** Called after the first of several failures. */
  onFailure: (cause: unknown) => void;
  /** Called after the first success that follows a failure. */
  onRecovery: () => void;
}

/** Pauses after failures, so that requests do not wait for a server that does not respond. */
export function createRemoteSource<Value>(options: RemoteSourceOptions<Value>): RemoteSource<Value> {
  const { load, retryMs, onFailure, onRecovery } = options;
  let fetchedAtMs = Number.NEGATIVE_INFINITY;
  let failure: { cause: unknown; atMs: number } | undefined;
  return {
    async fetch(signal) {
      if (failure !== undefined && performance.now() - failure.atMs < retryMs) throw failure.cause;
      try {
        const value = await load(signal);
        fetchedAtMs = performance.now();
        if (failure !== undefined) onRecovery();
        failure = undefined;
        return value;
      } catch (cause) {
        if (failure === undefined) onFailure(cause);
        failure = { cause, atMs: performance.now() };
        throw cause;
      }
    },
    ageMs: () => performance.now() - fetchedAtMs,
  };
}
