/**
 * A time of the past as it may be shown: never later than now. A clock that was ahead and is set back leaves such times.
 */
export function notLater<Time extends Date | null>(at: Time, now: Date): Time | Date {
  return at !== null && at > now ? now : at;
}
