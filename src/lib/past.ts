/** A past time for replies: never later than now. A clock that was ahead and is set back leaves later times behind. */
export function notAfter<Time extends Date | null>(at: Time, now: Date): Time | Date {
  return at !== null && at > now ? now : at;
}
