import type { SecretText } from '../crypto/secret-text.ts';
import { decodePercent } from '../lib/decode-percent.ts';
import { withoutUnreadable } from '../lib/readable-text.ts';

/** The shortest text that can be a key. Shorter ones occur in ordinary text. */
const shortestKey = 16;

const redacted = '[redacted]';

/** Whether a reporter's text contains the reported key or a token, plain or percent-encoded. */
export function containsKey(text: string, key: string, secrets: Pick<SecretText, 'isIn'>): boolean {
  if (secrets.isIn(text)) return true;
  return key.length >= shortestKey && (text.includes(key) || decodePercent(text).includes(key));
}

/** Makes a text storable that its sender cannot correct: bounded, readable and without keys. */
export function storable(
  text: string,
  key: string,
  { secrets, most }: { secrets: SecretText; most: number },
): string | null {
  const plain = key.length < shortestKey ? text : text.replaceAll(key, redacted);
  const clean = withoutUnreadable(secrets.redact(plain).toWellFormed()).slice(0, most).toWellFormed().trim();
  if (clean === '') return null;
  return containsKey(clean, key, secrets) ? redacted : clean;
}
