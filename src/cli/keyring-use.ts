import type { Keyring } from '../crypto/keyring.ts';
import type { KeyringUse } from '../database/keyring-use.ts';
import { counted } from './print.ts';

/** Describes each entry of the keyring, and each missing entry that is still used. */
export function describeKeyringUse(keyring: Keyring, uses: readonly KeyringUse[]): string[] {
  const ids = new Set([...keyring.entries.map(({ id }) => id), ...uses.map(({ keyringId }) => keyringId)]);
  return [...ids].map((id) => {
    const use = uses.find(({ keyringId }) => keyringId === id);
    const entry = `Keyring entry ${id} (${roleOf(keyring, id)})`;
    if (use === undefined) return `${entry}: not used${id === keyring.primary.id ? ' yet' : '; it can be removed'}.`;
    return `${entry}: ${countsOf(use)}.${id === keyring.primary.id ? '' : consequenceOf(keyring, use)}`;
  });
}

function roleOf(keyring: Keyring, id: string): string {
  if (id === keyring.primary.id) return 'primary';
  return keyring.get(id) === undefined ? 'not in the keyring' : 'secondary';
}

function countsOf(use: KeyringUse): string {
  const { sealedKeys, sealedDigests, webhooks, claims, taggedKeys, taggedTokens, bareTags, rows, archives } = use;
  const tagged: string[] = [];
  if (taggedKeys > 0) tagged.push(counted(taggedKeys, 'key'));
  if (taggedTokens > 0) tagged.push(counted(taggedTokens, 'access token'));
  const counts: string[] = [];
  if (sealedKeys > 0) counts.push(counted(sealedKeys, 'sealed key'));
  if (sealedDigests > 0) counts.push(`the sealed hashes of ${counted(sealedDigests, 'imported key')}`);
  if (tagged.length > 0) counts.push(`the tags of ${tagged.join(' and ')}`);
  if (webhooks > 0) counts.push(`the secrets of ${counted(webhooks, 'webhook')}`);
  if (claims > 0) counts.push(counted(claims, 'pending claim'));
  if (bareTags > 0) counts.push(`the remaining tags of ${counted(bareTags, 'compromised key')}`);
  if (rows > 0) counts.push(`the MACs of ${counted(rows, 'credential')}`);
  if (archives > 0) counts.push(`the MACs of ${counted(archives, 'archive')} of history`);
  return counts.join(', ');
}

/** Why an entry other than the primary is still needed, and what happens without it. */
function consequenceOf(keyring: Keyring, use: KeyringUse): string {
  const { keyringId, taggedKeys, taggedTokens, taggedImports, bareTags, rows, archives } = use;
  const isPresent = keyring.get(keyringId) !== undefined;
  const tagged = taggedKeys + taggedTokens;
  const movable = use.sealedKeys + use.sealedDigests + use.webhooks + use.claims + use.archives + rows;
  if (isPresent && movable > 0) return ' `latchkey rekey` moves them to the primary.';
  if (isPresent) {
    const meanings: string[] = [];
    if (tagged > 0) meanings.push('each tag moves to the primary at its next use');
    if (bareTags > 0) meanings.push('without this entry compromised keys look like unknown keys');
    return ` ${capitalized(meanings.join(', and '))}.`;
  }
  if (tagged + rows + archives === 0) return '';
  if (keyring.lostIds.has(keyringId)) {
    const imports =
      taggedImports === 0 ? '' : ` ${counted(taggedImports, 'imported key')} cannot be checked and must be replaced.`;
    return ` This entry is set as lost: argon2id checks each credential once, at its next use.${imports}`;
  }
  const effects: string[] = [];
  if (tagged + rows > 0) effects.push('those credentials are rejected');
  if (archives > 0) effects.push('chains with such an archive do not verify');
  return ` ${capitalized(effects.join(', and '))}. Restore the entry, or set LOST_KEYRING_IDS=${keyringId} if it is lost for good.`;
}

function capitalized(text: string): string {
  return text.charAt(0).toUpperCase() + text.slice(1);
}
