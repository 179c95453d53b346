/** A number with an exponent or with 16 characters or more: only such a one may change when it is read as a double. */
const longNumber = /[:,[\s]-?\d(?:[\d.]*[eE]|[\d.]{15})/;

/** Whether JSON text may hold a number that a double changes. Never wrong where it says no. */
export function mayChangeNumbers(json: string): boolean {
  return longNumber.test(json);
}

/**
 * Writes every number that a double would change as 1e999, which is read as Infinity.
 * @param json valid JSON
 */
export function withChangedNumbersInfinite(json: string): string {
  return json.replace(/"(?:[^"\\]+|\\.)*"|-?\d[\d.eE+-]*/g, (part) => {
    if (part.startsWith('"') || isKept(part)) return part;
    return '1e999';
  });
}

/** Enough for every double, so a program may well write a fraction with so many. */
const digitsOfDouble = 17;

/** A smaller double has fewer digits than others. */
const leastOfFullDigits = 2 ** -1022;

/**
 * Whether a number is still the same after it was read as a double and written again. A fraction may be rounded in its
 * 17th digit. Whole numbers end at 2^53 - 1 (RFC 7493 section 2.2), because past that two of them become one; 1e20 is one
 * too, because a reply would write it with all digits.
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

/** Without zeros before and after: 12.50e3 is the digits 125 and the exponent 2. */
function decimalOf(number: string): { digits: string; exponent: number } {
  const [, whole = '', fraction = '', exponent = '0'] = /^-?(\d+)(?:\.(\d+))?(?:[eE]([+-]?\d+))?$/.exec(number) ?? [];
  const digits = (whole + fraction).replace(/^0+/, '');
  let end = digits.length;
  while (end > 0 && digits[end - 1] === '0') end -= 1;
  if (end === 0) return { digits: '', exponent: 0 };
  return { digits: digits.slice(0, end), exponent: Number(exponent) - fraction.length + (digits.length - end) };
}
