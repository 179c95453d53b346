// Properties of a JSON text that JSON.parse does not show: its depth, duplicate members, and numbers that it changes.

/** Whether a JSON text is nested deeper than this. Does not recurse. */
export function isNestedDeeper(levels: number, text: string): boolean {
  // With fewer brackets than levels there is nothing to count; most texts have only a few.
  if (hasAtMost(levels / 2, '{', text) && hasAtMost(levels / 2, '[', text)) return false;
  let depth = 0;
  let inString = false;
  for (let index = 0; index < text.length; index++) {
    const character = text[index];
    if (inString) {
      if (character === '\\') index += 1;
      else if (character === '"') inString = false;
    } else if (character === '"') inString = true;
    else if (character === '{' || character === '[') {
      depth += 1;
      if (depth > levels) return true;
    } else if (character === '}' || character === ']') depth -= 1;
  }
  return false;
}

function hasAtMost(most: number, bracket: string, text: string): boolean {
  let found = 0;
  for (let at = text.indexOf(bracket); at >= 0; at = text.indexOf(bracket, at + 1)) {
    found += 1;
    if (found > most) return false;
  }
  return true;
}

const token = /"(?:[^"\\]+|\\.)*"(\s*:)?|[{}[\],]/g;

interface Level {
  /** Undefined in an array. */
  names: Set<string> | undefined;
  /** The current member or entry. */
  at: string | number;
}

/**
 * The path of the first duplicate member (RFC 7493 section 2.3): JSON.parse keeps the last one, but another program on
 * the way may have read the first. @param value the parsed text
 */
export function repeatedMember(json: string, value: unknown): string | undefined {
  // Each member has a colon. With as many colons as members there is no duplicate.
  if (colonsIn(json) === countMembers(value)) return undefined;
  const levels: Level[] = [];
  for (const [text, colon] of json.matchAll(token)) {
    const level = levels.at(-1);
    if (text === '{') levels.push({ names: new Set(), at: '' });
    else if (text === '[') levels.push({ names: undefined, at: 0 });
    else if (text === '}' || text === ']') levels.pop();
    else if (text === ',') {
      if (typeof level?.at === 'number') level.at += 1;
    } else if (colon !== undefined && level?.names !== undefined) {
      const name: string = JSON.parse(text.slice(0, -colon.length));
      level.at = name;
      if (level.names.has(name)) return levels.map(({ at }) => at).join('.');
      level.names.add(name);
    }
  }
  return undefined;
}

function colonsIn(text: string): number {
  let count = 0;
  for (let at = text.indexOf(':'); at >= 0; at = text.indexOf(':', at + 1)) count += 1;
  return count;
}

/** The number of members of all objects in a parsed text. */
export function countMembers(value: unknown): number {
  if (typeof value !== 'object' || value === null) return 0;
  const members = Object.values(value);
  return members.reduce((count, member) => count + countMembers(member), Array.isArray(value) ? 0 : members.length);
}

/**
 * A number with an exponent or with at least 16 characters: only such a number may change when it is read as a double.
 */
const longNumber = /[:,[\s]-?\d(?:[\d.]*[eE]|[\d.]{15})/;

/** Whether a JSON text may contain a number that a double changes. False is always right. */
export function mayChangeNumbers(json: string): boolean {
  return longNumber.test(json);
}

/** Writes every number that a double would change as 1e999, which is read as Infinity. @param json valid JSON */
export function withInexactNumbersInfinite(json: string): string {
  return json.replace(/"(?:[^"\\]+|\\.)*"|-?\d[\d.eE+-]*/g, (part) => {
    if (part.startsWith('"') || isKept(part)) return part;
    return '1e999';
  });
}

/** Enough digits for every double, so a program may write a fraction with this many. */
const digitsOfDouble = 17;

/** Smaller doubles have fewer digits. */
const leastOfFullDigits = 2 ** -1022;

/**
 * Whether a number is the same after it was read as a double and written again. A fraction may be rounded in its 17th
 * digit. Whole numbers end at 2^53 - 1 (RFC 7493 section 2.2); 1e20 is one too, because a reply would write all of its
 * digits.
 */
function isKept(number: string): boolean {
  const value = Number(number);
  if (!Number.isFinite(value)) return false;
  const isLarge = Number.isInteger(value) && !Number.isSafeInteger(value);
  if (isLarge && [number, String(value)].some((text) => /^-?\d+$/.test(text))) return false;
  const [sent, kept] = [decimalOf(number), decimalOf(String(value))];
  if (sent.digits === kept.digits && sent.exponent === kept.exponent) return true;
  return !Number.isInteger(value) && Math.abs(value) >= leastOfFullDigits && sent.digits.length <= digitsOfDouble;
}

/** Without leading and trailing zeros: 12.50e3 has the digits 125 and the exponent 2. */
function decimalOf(number: string): { digits: string; exponent: number } {
  const [, whole = '', fraction = '', exponent = '0'] = /^-?(\d+)(?:\.(\d+))?(?:[eE]([+-]?\d+))?$/.exec(number) ?? [];
  const digits = (whole + fraction).replace(/^0+/, '');
  let end = digits.length;
  while (end > 0 && digits[end - 1] === '0') end -= 1;
  if (end === 0) return { digits: '', exponent: 0 };
  return { digits: digits.slice(0, end), exponent: Number(exponent) - fraction.length + (digits.length - end) };
}
