/** The scripts in which a joiner inside a word changes the writing. */
const joining = [
  ...['Arab', 'Beng', 'Deva', 'Gujr', 'Guru', 'Khmr', 'Knda', 'Mlym', 'Mong'],
  ...['Mymr', 'Nkoo', 'Orya', 'Sinh', 'Syrc', 'Taml', 'Telu', 'Tibt'],
]
  .map((script) => `\\p{scx=${script}}`)
  .join('');

/** Joiners inside such words, and characters that join emoji or select their form. */
const needed = [
  `(?<=[${joining}])[\\u200c\\u200d](?=[${joining}])`,
  '(?<=\\p{Extended_Pictographic}[\\ufe0f\\p{Emoji_Modifier}]?)\\u200d(?=\\p{Extended_Pictographic})',
  '(?<=\\p{Extended_Pictographic})[\\ufe0e\\ufe0f]',
  '(?<=[0-9#*])\\ufe0f(?=\\u20e3)',
].join('|');

/**
 * Invisible characters: controls, formats (Unicode's Cf), other ignorables, line and paragraph separators, and the
 * blank Braille pattern. The number signs of Arabic scripts are formats that are visible.
 */
const unreadable =
  '(?![\\u0600-\\u0605\\u06dd\\u070f\\u0890\\u0891\\u08e2])[\\p{Cc}\\p{Cf}\\p{Default_Ignorable_Code_Point}\\u2028\\u2029\\u2800]';

const neededOrUnreadable = new RegExp(`(${needed})|${unreadable}`, 'gu');

/** Finds characters that are invisible or change the order of the text. @returns the first one, such as `U+202E` */
export function findUnreadable(text: string): string | undefined {
  for (const [character, isNeeded] of text.matchAll(neededOrUnreadable)) {
    if (isNeeded !== undefined) continue;
    return `U+${character.codePointAt(0)?.toString(16).toUpperCase().padStart(4, '0')}`;
  }
  return undefined;
}

/** The text with a space in place of each such character. */
export function withoutUnreadable(text: string): string {
  return text.replace(neededOrUnreadable, (_, isNeeded: string | undefined) => isNeeded ?? ' ');
}
