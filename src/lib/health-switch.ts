/** Whether something works, for those who act only when that changes. */
export interface HealthSwitch {
  /** Undefined until it is known. */
  readonly isHealthy: boolean | undefined;
  set(isHealthy: boolean, cause?: unknown): void;
}

/**
 * @param onChange called when it begins to work or to fail, and at first where `initially` is left out
 */
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
