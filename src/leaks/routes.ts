import type { FastifyPluginAsyncZod } from 'fastify-type-provider-zod';
import { z } from 'zod';
import type { SecretText } from '../crypto/secret-text.ts';
import type { ActorContext } from '../database/work.ts';
import { systemActor } from '../domain/actor.ts';
import { Problem } from '../domain/errors.ts';
import { actorContextOf } from '../http/guard.ts';
import { allowTokensInBody } from '../http/json-body.ts';
import { exampleId, idView, prose, text } from '../http/schemas.ts';
import { atFixedTimes } from '../lib/fixed-times.ts';
import type { LeakReports } from './reports.ts';
import { containsKey } from './texts.ts';

/** Small, because anybody can send it on thousands of connections at once. */
const bodyLimitBytes = 8_192;

/** Replies to anonymous reports are sent at multiples of this, so that the time does not show what the key is. */
const replyStepMs = 250;

export const longestPlace = { source: 200, url: 2_048 };

const newReport = z
  .strictObject({
    key: z.string().trim().meta({ description: 'The key as it was found. It is not stored.' }),
    source: text(longestPlace.source).optional().meta({ description: 'What found it, or where.' }),
    url: text(longestPlace.url).optional().meta({ description: 'Where it was found.' }),
    note: prose(1_000).optional().meta({ description: 'Anything else for the owner of the key.' }),
  })
  .meta({
    id: 'LeakReport',
    example: {
      key: 'lk_k_01k9s3v5wqe8n8x4r2m6t7yb0c_Vx0…',
      source: 'gitleaks',
      url: 'https://git.example.com/app/blob/4f2a9c1/config.yml',
    },
  });

const leakAction = z.enum(['notify', 'suspend', 'revoke', 'none']).meta({ id: 'LeakAction' });

const leakAnswer = z
  .object({
    found: z.boolean().meta({ description: 'Whether it is an API key that the caller may know of, live or deleted.' }),
    keyId: idView('key').nullable(),
    action: leakAction.nullable().meta({
      description:
        "What the report did, by the organization's `leakResponse`; for a repeated report, what the first one did. `none`: " +
        'the key was compromised before, or can no longer be restored. Null if no key was found.',
    }),
  })
  .meta({ id: 'LeakAnswer', example: { found: true, keyId: exampleId('key'), action: 'notify' } });

const accepted = z.strictObject({}).meta({ id: 'LeakAccepted', description: 'The same for every text.' });

const reporter = systemActor('leak_report', 'leak report');

/** Takes reports of leaked keys from anybody. */
export const leakRoutes: FastifyPluginAsyncZod<{ reports: LeakReports }> = async (app, { reports }) => {
  allowTokensInBody(app);
  app.post(
    '/leaks',
    {
      bodyLimit: bodyLimitBytes,
      config: {
        access: { role: 'admin', scope: 'write', installation: true, anonymous: true },
        idempotencyKey: 'ignored',
        problems: ['overloaded', 'secret_in_text'],
      },
      schema: {
        operationId: 'reportLeak',
        tags: ['Leaks'],
        summary: 'Report a leaked key',
        description:
          'For everybody who finds a key where it should not be. Without a credential the reply is always the same. If the key ' +
          'works or could be restored, `key.leak_reported` is recorded, and `leakResponse` of its organization acts. A repeated ' +
          'report of the same key and place has no effect within a day. A body may have at most 8 KiB.',
        body: newReport,
        response: { 200: leakAnswer, 202: accepted },
      },
    },
    async (request, reply) => {
      const { key, source = null, url = null, note = null } = request.body;
      requireWithoutKey({ source, url, note }, key, app.secretText);
      if (request.principal === null) {
        const by = { actor: reporter, organizationId: null, request: request.facts, trace: request.span?.context };
        await atFixedTimes(replyStepMs, () => reports.report(key, { source, url, note }, by satisfies ActorContext));
        return reply.code(202).send({});
      }
      const { keyId, action } = await reports.report(key, { source, url, note }, actorContextOf(request));
      return { found: keyId !== null, keyId, action };
    },
  );
};

/** @throws Problem `secret_in_text` */
function requireWithoutKey(texts: Record<string, string | null>, key: string, secrets: SecretText): void {
  for (const [name, value] of Object.entries(texts)) {
    if (value === null || !containsKey(value, key, secrets)) continue;
    const [path, message] = [`body.${name}`, 'must not contain the key, or another Latchkey token'];
    throw new Problem('secret_in_text', `${path}: ${message}`, { errors: [{ path, message }] });
  }
}
