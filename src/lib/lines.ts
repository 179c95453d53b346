const newline = 0x0a;

/**
 * The lines of a stream, without their newlines. Only U+000A ends a line: `node:readline` would also cut at U+2028.
 * @param longestBytes of a longer line only one byte more is kept, so that it cannot fill the memory
 */
export async function* linesOf(
  chunks: AsyncIterable<Buffer>,
  longestBytes = Number.POSITIVE_INFINITY,
): AsyncGenerator<Buffer> {
  let begun: Buffer[] = [];
  let begunBytes = 0;
  const add = (part: Buffer) => {
    const kept = part.subarray(0, longestBytes + 1 - begunBytes);
    begunBytes += kept.length;
    if (kept.length > 0) begun.push(kept);
  };
  for await (const chunk of chunks) {
    let from = 0;
    for (let end = chunk.indexOf(newline); end >= 0; end = chunk.indexOf(newline, from)) {
      add(chunk.subarray(from, end));
      yield begun.length === 1 ? (begun[0] as Buffer) : Buffer.concat(begun);
      begun = [];
      begunBytes = 0;
      from = end + 1;
    }
    if (from < chunk.length) add(chunk.subarray(from));
  }
  if (begun.length > 0) yield Buffer.concat(begun);
}
