import { validatorCompiler } from 'fastify-type-provider-zod';
import { z } from 'zod';
import { inputErrorsOf } from '../src/http/input-errors.ts';
import { type Json, startService } from './support/app.ts';
import { t } from './support/tap.ts';

const libraryWords = /\b(invalid|expected|received|unrecognized|too (big|small))\b|<=|>=/i;
const ownWords = /^(must|is|has|would|does) /;

type Code = z.core.$ZodIssueCode;

const string = z.string();
const number = z.number();

/** For each code of zod: an input and its message. */
const table: Record<Code, Array<[schema: z.ZodType, value: unknown, message: string]>> = {
  invalid_type: [
    [string, undefined, 'is required: a string'],
    [string, 7, 'must be a string'],
    [number, '7', 'must be a number'],
    [number.max(5), null, 'must be a number of at most 5'],
    [z.int(), 1.5, 'must be a whole number'],
    [z.int().min(1).max(60), '7', 'must be a whole number from 1 to 60'],
    [z.int().min(1), undefined, 'is required: a whole number of at least 1'],
    [z.boolean(), 'true', 'must be true or false'],
    [z.object({}), null, 'must be an object'],
    [z.record(z.string(), z.unknown()), [], 'must be an object'],
    [z.array(z.unknown()), {}, 'must be an array'],
    [z.array(z.enum(['read', 'write'])), undefined, 'is required: an array of "read" and "write"'],
    [z.array(z.enum(['a', 'b', 'c', 'd'])), 'a', 'must be an array of strings'],
    [z.array(string), 'a', 'must be an array of strings'],
    [z.array(z.object({})), {}, 'must be an array of objects'],
    [z.tuple([string]), {}, 'must be an array'],
    [z.null(), 1, 'must be null'],
    [z.undefined(), 1, 'must be left out'],
    [z.never(), 1, 'must be left out'],
    [z.date(), 1, 'must be a date'],
    [z.bigint(), 1, 'must be of the type bigint'],
    [z.nonoptional(string.optional()), undefined, 'is required: a string'],
  ],
  invalid_value: [
    [z.enum(['read', 'write']), 'x', 'must be one of "read", "write"'],
    [z.enum(['read', 'write']), undefined, 'is required: one of "read", "write"'],
    [z.literal('403'), 'x', 'must be "403"'],
    [z.literal([1, null]), 'x', 'must be one of 1, null'],
  ],
  too_big: [
    [string.max(500), 'x'.repeat(501), 'must have at most 500 characters'],
    [string.max(1), 'xx', 'must have at most 1 character'],
    [string.length(3), 'xxxx', 'must have exactly 3 characters'],
    [z.array(string).max(2), ['', '', ''], 'must have at most 2 entries'],
    [number.max(5), 6, 'must be at most 5'],
    [number.lt(5), 5, 'must be less than 5'],
    [z.set(string).max(0), new Set(['x']), 'must have at most 0 entries'],
    [z.bigint().max(5n), 6n, 'must be at most 5'],
  ],
  too_small: [
    [string.min(1), '', 'must not be empty'],
    [string.min(2), 'x', 'must have at least 2 characters'],
    [z.array(string).min(1), [], 'must not be empty'],
    [number.min(5), 4, 'must be at least 5'],
    [number.gt(5), 5, 'must be more than 5'],
  ],
  invalid_format: [
    [z.email(), 'x', 'must be of the form email'],
    [string.startsWith('a'), 'x', 'must begin with "a"'],
    [string.endsWith('a'), 'x', 'must end with "a"'],
    [string.includes('a'), 'x', 'must contain "a"'],
    [string.regex(/^a$/), 'x', 'must match /^a$/'],
  ],
  not_multiple_of: [[number.multipleOf(5), 6, 'must be a multiple of 5']],
  unrecognized_keys: [[z.strictObject({}), { a: 1, b: 1 }, 'has members that are not known here: a, b']],
  invalid_union: [
    [z.union([string, z.int()]), null, 'must be a string or a whole number'],
    [z.union([string, z.null()]), undefined, 'is required: a string or null'],
    [z.xor([string, string.max(5)]), 'x', 'must be a string'],
    [
      z.discriminatedUnion('kind', [z.object({ kind: z.literal('a') }), z.object({ kind: z.literal('b') })]),
      { kind: 'c' },
      'must be one of "a", "b"',
    ],
  ],
  invalid_key: [[z.record(string.max(1), z.unknown()), { ab: 1 }, 'has a member whose name is not allowed']],
  invalid_element: [[z.map(z.unknown(), z.string()), new Map([[{}, 1]]), 'has an entry that is not allowed']],
  custom: [[string.refine(() => false), 'x', 'is not allowed']],
};

t.test('each kind of issue has its own message', async (t) => {
  for (const [code, cases] of Object.entries(table)) {
    for (const [schema, value, message] of cases) {
      const [issue] = schema.safeParse(value).error?.issues ?? [];
      t.match({ code: issue?.code, message: issue?.message }, { code, message }, `${code}: ${message}`);
    }
  }
});

/** One value of each type, and values of the right type that are invalid. */
const wrongValues = [
  ...[undefined, null, true, 7, -1, 1.5, 1e15, '', 'x', 'x'.repeat(100_000), '\u202e', '2026-13-01T00:00:00Z'],
  ...[[], [null], ['x'], ['read', 'read'], Array(1_000).fill('read'), {}, { unknown: 1 }],
];

interface JsonSchema {
  $ref?: string;
  $defs?: Record<string, JsonSchema>;
  properties?: Record<string, JsonSchema>;
  items?: JsonSchema;
  anyOf?: JsonSchema[];
  example?: unknown;
}

/** Inputs that are invalid in one place each. */
function* wrongInputs(jsonSchema: JsonSchema, named = jsonSchema.$defs ?? {}): Generator<unknown> {
  const schema = named[jsonSchema.$ref?.split('/').at(-1) ?? ''] ?? jsonSchema;
  yield* wrongValues;
  for (const option of schema.anyOf ?? []) yield* wrongInputs(option, named);
  if (schema.items !== undefined) for (const item of wrongInputs(schema.items, named)) yield [item];
  const example = schema.example as object | undefined;
  yield { ...example, unknown: 1 };
  for (const [name, member] of Object.entries(schema.properties ?? {})) {
    for (const value of wrongInputs(member, named)) yield { ...example, [name]: value };
  }
}

t.test('no route returns a message of the validation library', async (t) => {
  const { app } = await startService(t);
  const messages = new Set<string>();
  const walk = (schema: unknown, httpPart: string) => {
    if (!(schema instanceof z.ZodType)) return;
    const validate = validatorCompiler({ schema, httpPart, method: 'POST', url: '/' } as never);
    const shape = z.toJSONSchema(schema, { io: 'input', unrepresentable: 'any' }) as JsonSchema;
    for (const input of wrongInputs(shape)) {
      const { error } = validate(input) as { error?: Json };
      for (const { path, message } of error === undefined ? [] : inputErrorsOf(error, httpPart)) {
        messages.add(message);
        if (libraryWords.test(message) || !ownWords.test(message)) t.fail(`${path}: ${message}`);
      }
    }
  };
  for (const { schema } of app.routeList) {
    walk(schema?.body, 'body');
    walk(schema?.querystring, 'querystring');
  }
  t.ok(messages.size > 40, `${messages.size} texts`);
});

t.test('messages about missing, mistyped and unknown members are clear to a client', async (t) => {
  const { admin, verifier } = await startService(t);
  const errorsOf = async (reply: Promise<Json>) =>
    (await reply).body.errors.map(({ path, message }: Json) => `${path}: ${message}`);
  t.same(await errorsOf(admin.post('/v1/partners', { nmae: 'x' })), [
    'body.email: is required: an e-mail address',
    'body.permissions: is required: an array of "read" and "write"',
    'body.nmae: is unknown; remove it',
  ]);
  t.same(await errorsOf(admin.post('/v1/keys', { permission: 'all', expiresAt: 7, rateLimit: { requests: 0 } })), [
    'body.permission: must be one of "read", "write", "read_write"',
    'body.expiresAt: must be a time by RFC 3339, such as 2026-11-23T09:30:00.000Z',
    'body.rateLimit.requests: must be at least 1',
    'body.rateLimit.windowSeconds: is required: a whole number from 1 to 86400',
  ]);
  t.same(await errorsOf(admin.post('/v1/keys', { name: Array(300).fill('x') })), ['body.name: must be a string']);
  t.same(await errorsOf(admin.post('/v1/keys', [])), ['body: must be an object']);
  t.same(await errorsOf(admin.get('/v1/keys?limit=0&status=x&dry=1')), [
    'query.limit: must be a whole number from 1 to 200',
    'query.status: must be one of "active", "suspended", "expired", "deleted"',
    'query.dry: is unknown; remove it',
  ]);
  const entries = [{ key: 1, permission: 'x', cost: 1_001, more: 1 }];
  const { body } = await verifier.post('/v1/verify/batch', { entries });
  t.same(
    body.data[0].errors.map(({ path, message }: Json) => `${path}: ${message}`),
    [
      'body.entries.0.key: must be a string',
      'body.entries.0.permission: must be one of "read", "write"',
      'body.entries.0.more: is unknown; remove it',
    ],
  );
});
