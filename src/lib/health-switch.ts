/** Remembers whether something works, and reports only changes. */
export interface HealthSwitch {
  /** Undefined until it is known. */
  readonly isHealthy: boolean | undefined;
  set(isHealthy: boolean, cause?: unknown): void;
}

/** @param onChange called when it starts to work or to fail, and for the first value if `initially` is left out */
export function createHealthSwitch(
  onChange: (isHealthy: boolean, cause?: unknown) => void,
  initially?: boolean,
): HealthSwitch {
  let current = initially;
  return {
    get isHealthy() {
      return current;
    },
    set(isHealthy, cause) {
      if (isHealthy === current) return;
      current = isHealthy;
      onChange(isHealthy, cause);
    },
  };
}
