import type { Keyring } from '../crypto/keyring.ts';
import type { KeyringUse } from '../db/keyring-use.ts';
import { counted } from './print.ts';

/** A line for each entry of the keyring, and for each that is still used without being there. */
export function tellKeyringUse(keyring: Keyring, uses: readonly KeyringUse[]): string[] {
  const ids = new Set([...keyring.entries.map(({ id }) => id), ...uses.map(({ keyringId }) => keyringId)]);
  return [...ids].map((id) => {
    const use = uses.find(({ keyringId }) => keyringId === id);
    const entry = `Keyring entry ${id} (${placeOf(keyring, id)})`;
    if (use === undefined) return `${entry}: nothing rests on it${id === keyring.primary.id ? ' yet' : ', it can go'}.`;
    return `${entry}: ${countsOf(use)}.${id === keyring.primary.id ? '' : whatItMeans(keyring, use)}`;
  });
}

function placeOf(keyring: Keyring, id: string): string {
  if (id === keyring.primary.id) return 'primary';
  return keyring.get(id) === undefined ? 'not in the keyring' : 'secondary';
}

function countsOf({ sealedKeys, webhooks, taggedKeys, taggedTokens, bareTags }: KeyringUse): string {
  const tagged: string[] = [];
  if (taggedKeys > 0) tagged.push(counted(taggedKeys, 'key'));
  if (taggedTokens > 0) tagged.push(counted(taggedTokens, 'access token'));
  const counts: string[] = [];
  if (sealedKeys > 0) counts.push(counted(sealedKeys, 'sealed key'));
  if (tagged.length > 0) counts.push(`the tags of ${tagged.join(' and ')}`);
  if (webhooks > 0) counts.push(`the secrets of ${counted(webhooks, 'webhook')}`);
  if (bareTags > 0) counts.push(`the tags that are all that is left of ${counted(bareTags, 'compromised key')}`);
  return counts.join(', ');
}

/** What a secondary entry is still good for, and what its retirement costs. */
function whatItMeans(keyring: Keyring, use: KeyringUse) {
  const { keyringId, sealedKeys, webhooks, taggedKeys, taggedTokens, bareTags } = use;
  const isThere = keyring.get(keyringId) !== undefined;
  if (sealedKeys + webhooks > 0) return isThere ? ' `latchkey rekey` moves what is sealed to the primary.' : '';
  const meanings: string[] = [];
  if (taggedKeys + taggedTokens > 0) meanings.push('argon2id checks each of these once, at its next use');
  if (bareTags > 0) meanings.push('compromised keys are no longer told from unknown ones');
  return ` Without it ${meanings.join(', and ')}.`;
}
