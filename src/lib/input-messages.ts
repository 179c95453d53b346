import { z } from 'zod';

/**
 * Messages for invalid input. A message continues the path, as in `body.name must have at most 200 characters`. Every
 * reader of input imports this module, because zod's own messages are for programmers.
 */

type Issue = z.core.$ZodRawIssue;
type Schema = z.core.$ZodTypes;

/** For schemas that describe what they expect, such as `an e-mail address`. */
export function mustBe(expected: string): (issue: { input: unknown }) => string {
  return ({ input }) => (input === undefined ? `is required: ${expected}` : `must be ${expected}`);
}

function messageOf(issue: Issue): string {
  switch (issue.code) {
    case 'invalid_type':
      return mustBe(expectedBy(issue.inst) ?? typeNamed(issue.expected))(issue);
    case 'invalid_value':
      return mustBe(oneOf(issue.values))(issue);
    case 'invalid_union':
      return mustBe(Array.isArray(issue.options) ? oneOf(issue.options) : (expectedBy(issue.inst) ?? anotherValue))(
        issue,
      );
    case 'too_big':
      return bound(issue, 'at most', 'less than', issue.maximum);
    case 'too_small':
      return bound(issue, 'at least', 'more than', issue.minimum);
    case 'invalid_format':
      return ofFormat(issue);
    case 'not_multiple_of':
      return `must be a multiple of ${issue.divisor}`;
    case 'unrecognized_keys':
      return `has members that are not known here: ${issue.keys.join(', ')}`;
    case 'invalid_key':
      return 'has a member whose name is not allowed';
    case 'invalid_element':
      return 'has an entry that is not allowed';
    default:
      return 'is not allowed';
  }
}

z.config({ customError: messageOf });

const anotherValue = 'another value';

/** What a schema accepts, in JSON's terms; undefined for a check. */
function expectedBy(inst: Issue['inst'] | Schema): string | undefined {
  if (inst === undefined || !('type' in inst._zod.def)) return undefined;
  const schema = inst as Schema;
  const { def } = schema._zod;
  switch (def.type) {
    case 'number':
      return numberWithin(inst as z.ZodNumber);
    case 'array':
      return arrayOf(def.element as Schema);
    case 'enum':
      return oneOf(Object.values(def.entries));
    case 'literal':
      return oneOf(def.values);
    case 'union':
      return alternatives(def.options as Schema[]);
    case 'pipe':
      return expectedBy(def.in as Schema);
    default:
      // Optional, nullable and the like.
      return 'innerType' in def ? expectedBy(def.innerType as Schema) : typeNamed(def.type);
  }
}

function typeNamed(type: string): string {
  switch (type) {
    case 'object':
    case 'record':
    case 'map':
      return 'an object';
    case 'array':
    case 'tuple':
    case 'set':
      return 'an array';
    case 'int':
      return 'a whole number';
    case 'boolean':
      return 'true or false';
    case 'null':
      return 'null';
    case 'undefined':
    case 'void':
    case 'never':
      return 'left out';
    case 'string':
    case 'number':
    case 'date':
      return `a ${type}`;
    default:
      return `of the type ${type}`;
  }
}

function numberWithin({ minValue, maxValue, isInt }: z.ZodNumber): string {
  const number = isInt ? 'a whole number' : 'a number';
  const isFrom = minValue !== null && minValue > Number.MIN_SAFE_INTEGER;
  const isTo = maxValue !== null && maxValue < Number.MAX_SAFE_INTEGER;
  if (isFrom && isTo) return `${number} from ${minValue} to ${maxValue}`;
  if (isFrom) return `${number} of at least ${minValue}`;
  return isTo ? `${number} of at most ${maxValue}` : number;
}

const mostListed = 3;

function arrayOf(element: Schema): string {
  const { def } = element._zod;
  if (def.type === 'enum') {
    const values = Object.values(def.entries).map(quoted);
    return values.length > mostListed ? 'an array of strings' : `an array of ${values.join(' and ')}`;
  }
  const expected = expectedBy(element);
  const [, one] = /^an? (string|object|array|number|whole number)\b/.exec(expected ?? '') ?? [];
  return one === undefined ? 'an array' : `an array of ${one}s`;
}

function alternatives(options: readonly Schema[]): string {
  return [...new Set(options.map((option) => expectedBy(option) ?? anotherValue))].join(' or ');
}

function oneOf(values: readonly unknown[]): string {
  return values.length === 1 ? quoted(values[0]) : `one of ${values.map(quoted).join(', ')}`;
}

/** Numbers and null without quotes: JSON has no other values here. */
function quoted(value: unknown): string {
  return typeof value === 'string' ? `"${value}"` : String(value);
}

const counted: Record<string, [one: string, many: string]> = {
  string: ['character', 'characters'],
  array: ['entry', 'entries'],
  set: ['entry', 'entries'],
  map: ['member', 'members'],
  file: ['byte', 'bytes'],
};

type BoundIssue = Extract<Issue, { code: 'too_big' | 'too_small' }>;

function bound(
  { origin, exact, inclusive }: BoundIssue,
  within: string,
  beyond: string,
  edge: number | bigint,
): string {
  const how = exact === true ? 'exactly' : inclusive === false ? beyond : within;
  const units = counted[origin];
  if (units === undefined) return `must be ${how} ${edge}`;
  if (how === 'at least' && edge === 1) return 'must not be empty';
  return `must have ${how} ${edge} ${units[Number(edge) === 1 ? 0 : 1]}`;
}

function ofFormat(issue: Extract<Issue, { code: 'invalid_format' }>): string {
  const { format } = issue as { format: string };
  switch (format) {
    case 'starts_with':
      return `must begin with ${quoted(issue['prefix'])}`;
    case 'ends_with':
      return `must end with ${quoted(issue['suffix'])}`;
    case 'includes':
      return `must contain ${quoted(issue['includes'])}`;
    case 'regex':
      return `must match ${String(issue['pattern'])}`;
    default:
      return `must be of the form ${format}`;
  }
}
