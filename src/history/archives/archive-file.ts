import { createHash } from 'node:crypto';
import { createReadStream } from 'node:fs';
import { linesOf } from '../../lib/lines.ts';

/** The lines of an archive's file, and its digest once all of them were read. */
export function openArchiveFile(path: string) {
  const hash = createHash('sha256');
  let bytes = 0;
  async function* chunks(): AsyncGenerator<Buffer> {
    for await (const chunk of createReadStream(path) as AsyncIterable<Buffer>) {
      hash.update(chunk);
      bytes += chunk.length;
      yield chunk;
    }
  }
  return { lines: linesOf(chunks()), digest: () => ({ sha256: hash.digest(), bytes }) };
}
