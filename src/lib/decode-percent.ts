const mostRounds = 5;

/** Decodes percent-encoded ASCII, also if it was encoded several times. Everything else stays, so this never throws. */
export function decodePercent(text: string): string {
  let decoded = text;
  for (let round = 0; round < mostRounds && decoded.includes('%'); round++) {
    const next = decoded.replace(/%(?:25)*([0-7][0-9a-f])/gi, (_, hex: string) =>
      String.fromCharCode(Number.parseInt(hex, 16)),
    );
    if (next === decoded) break;
    decoded = next;
  }
  return decoded;
}
