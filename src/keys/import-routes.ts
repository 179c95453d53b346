import type { FastifySchemaCompiler } from 'fastify';
import { type FastifyPluginAsyncZod, validatorCompiler } from 'fastify-type-provider-zod';
import pLimit from 'p-limit';
import { z } from 'zod';
import { type OrganizationContext, rehearse, type Transactor, type Work } from '../database/work.ts';
import { type InputError, Problem, type ProblemCode } from '../domain/errors.ts';
import { createConcurrencyLimit, onceClosed, organizationGroupOf } from '../http/concurrency-limit.ts';
import { organizationContextOf } from '../http/guard.ts';
import { allowTokensInBody } from '../http/json-body.ts';
import { removeFromFacts } from '../http/request-facts.ts';
import { givenMemberOf, type ImportEntry, importKeys, maxImportEntries } from './import-commands.ts';
import { importEntryInput, readImportEntry } from './import-input.ts';
import type { Key } from './store.ts';
import { keyView, toKeyView } from './views.ts';

/** Enough for a full import with usual metadata. */
const importBodyLimitBytes = 1_048_576;

/** Imports whose body arrives, that run or wait in one process; half of what is free for one organization. */
const importsAtOnce = 64;

/** Imports wait for each other in the database, so more of them would only hold connections. */
const runningImports = 2;

const importRequest = z
  .strictObject({
    entries: z.array(importEntryInput).min(1).max(maxImportEntries),
    dryRun: z
      .boolean()
      .default(false)
      .meta({ description: 'Check everything and store nothing. The ids in the reply are then not used.' }),
  })
  .meta({
    id: 'KeyImport',
    example: {
      entries: [
        { partnerExternalId: 'customer-4711', permission: 'read', plaintext: 'acme_live_9f2c1b7e4d8a4f0c' },
        { sha256: '2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae', lastFour: '4f0c' },
      ],
    },
  });

const importView = z
  .object({ data: z.array(keyView) })
  .meta({ id: 'ImportedKeys', description: 'The keys, in the order of the entries.' });

/** Entries are read one by one, so that a problem names all of them. */
const uncheckedRequest = importRequest.extend({ entries: z.array(z.unknown()).min(1).max(maxImportEntries) });

const importValidator: FastifySchemaCompiler<z.ZodType> = (part) =>
  validatorCompiler(part.httpPart === 'body' ? { ...part, schema: uncheckedRequest } : part);

export interface KeyImportRoutesOptions {
  transactor: Transactor;
  tokenPrefix: string;
  undoWindowSeconds: number;
}

/** Brings keys that exist elsewhere. */
export const keyImportRoutes: FastifyPluginAsyncZod<KeyImportRoutesOptions> = async (app, options) => {
  const { transactor, tokenPrefix, undoWindowSeconds } = options;
  const running = pLimit(runningImports);
  const concurrency = createConcurrencyLimit({ resources: 'imports', totalLimit: importsAtOnce, retryAfterSeconds: 1 });
  // Before the body, which is large.
  app.addHook('onRequest', async (request, reply) => {
    onceClosed(reply.raw, concurrency.acquire(organizationGroupOf(request)));
  });
  app.setValidatorCompiler(importValidator);
  // Tokens are searched in each entry, so that the problem names the entry.
  allowTokensInBody(app);
  app.post(
    '/keys/import',
    {
      bodyLimit: importBodyLimitBytes,
      config: {
        access: { role: 'admin', scope: 'write' },
        idempotencyKey: 'taken',
        problems: [
          'key_exists',
          'row_full',
          'already_deleted',
          'not_found',
          'secret_in_text',
          'rate_limited',
          'overloaded',
        ],
      },
      schema: {
        operationId: 'importKeys',
        tags: ['Keys'],
        summary: 'Import keys that exist already',
        description:
          `Imports up to ${maxImportEntries} keys in a body of up to ${importBodyLimitBytes / 1_048_576} MiB, all or none. Their holders keep ` +
          'using the same tokens. If entries do not fit, `errors` names each of them. If all of them fail for the same ' +
          'reason, `code` is that reason, otherwise `validation_failed`. With dryRun the reply is the same with the status ' +
          '200, and nothing is stored, nor is a reply for an Idempotency-Key. Another replica may answer `not_found` for up to ' +
          'a second if the token was presented there just before.',
        body: importRequest,
        response: { 200: importView, 201: importView },
      },
    },
    async (request, reply) => {
      const entries = (request.body.entries as unknown[]).map((entry) =>
        readImportEntry(entry, { secrets: app.secretText, tokenPrefix }),
      );
      for (const entry of entries) {
        if ('token' in entry && entry.token.plaintext !== null) {
          removeFromFacts(entry.token.plaintext.reveal(), request, reply);
        }
      }
      const by = organizationContextOf(request);
      const act = async (work: Work<OrganizationContext>) => {
        const keys = await importAll(work, entries);
        const context = { tokenPrefix, undoWindowSeconds, now: work.now };
        return { data: keys.map((key) => toKeyView({ ...key, last_used_at: null }, context)) };
      };
      return running(() =>
        request.body.dryRun
          ? rehearse(transactor, by, act)
          : app.runOnce(request, reply, by, async (work) => ({ view: await act(work), location: '/v1/keys' })),
      );
    },
  );
};

type ReadEntry = ReturnType<typeof readImportEntry>;

/** Also checks the other entries if some have a wrong form, so that one problem names everything. */
async function importAll(work: Work<OrganizationContext>, read: readonly ReadEntry[]): Promise<Key[]> {
  const positions: number[] = [];
  const entries: ImportEntry[] = [];
  const problems: ImportProblem[] = [];
  for (const [index, entry] of read.entries()) {
    if ('flaws' in entry) {
      problems.push(...entry.flaws.map(({ path, code, message }) => ({ index, path, code, message })));
    } else {
      positions.push(index);
      entries.push(entry);
    }
  }
  const result = await importKeys(work, entries);
  for (const problem of result.problems) {
    const index = positions[problem.index] ?? problem.index;
    const entry = entries[problem.index];
    problems.push({ ...problem, index, path: entry === undefined ? '' : givenMemberOf(problem, entry) });
  }
  if (problems.length > 0) throw problemOf(problems);
  return result.keys;
}

/** A problem with an entry at its position in the request. */
interface ImportProblem {
  index: number;
  path: string;
  code: ProblemCode;
  message: string;
  keyId?: string | undefined;
}

/** So many errors of one entry are listed, so that there is room for every entry. */
const errorsOfEntry = 2;

function problemOf(problems: readonly ImportProblem[]): Problem {
  const ordered = problems.toSorted((one, other) => one.index - other.index);
  const listed = ordered.filter(({ index }, at) => ordered[at - errorsOfEntry]?.index !== index);
  const errors = listed.map(({ index, path, message }): InputError => {
    const member = path === '' ? '' : `.${path}`;
    return { path: `body.entries[${index}]${member}`, message };
  });
  const codes = new Set(problems.map(({ code }) => code));
  const [only = 'validation_failed'] = codes;
  const keyId = problems.find((problem) => problem.keyId !== undefined)?.keyId;
  return new Problem(
    codes.size === 1 ? only : 'validation_failed',
    errors.map(({ path, message }) => `${path}: ${message}`).join('; '),
    { errors, errorsListed: maxImportEntries * errorsOfEntry, members: keyId === undefined ? {} : { keyId } },
  );
}
