const mostRounds = 5;

/** Decodes what is ASCII, also where it was encoded several times. All else stays as it is, so this never throws. */
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
