import { holdsCredential, type SecretText, withoutCredential } from '../crypto/secret-text.ts';
import { withoutUnreadable } from '../lib/readable-text.ts';

/** Whether a reporter's text contains the reported key or a token, plain or percent-encoded. */
export function containsKey(text: string, key: string, secrets: Pick<SecretText, 'isIn'>): boolean {
  return secrets.isIn(text) || holdsCredential(text, key);
}

/** Makes a text storable that its sender cannot correct: bounded, readable and without keys. */
export function storable(
  text: string,
  key: string,
  { secrets, most }: { secrets: SecretText; most: number },
): string | null {
  const clean = withoutUnreadable(withoutCredential(secrets.redact(text), key).toWellFormed());
  return clean.slice(0, most).toWellFormed().trim() || null;
}
