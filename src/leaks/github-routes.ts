import { verify } from 'node:crypto';
import type { FastifyRequest } from 'fastify';
import type { FastifyPluginAsyncZod } from 'fastify-type-provider-zod';
import { z } from 'zod';
import { systemActor } from '../domain/actor.ts';
import { Problem } from '../domain/errors.ts';
import { createConcurrencyLimit, onceClosed } from '../http/concurrency-limit.ts';
import { parseSignedJson } from '../http/json-body.ts';
import { networkOf } from '../lib/network-of.ts';
import type { GithubKeys } from './github-keys.ts';
import type { LeakReports } from './reports.ts';
import { longestPlace } from './routes.ts';
import { storable } from './texts.ts';

/** GitHub's secret scanning partner programme: docs.github.com/en/code-security/secret-scanning/secret-scanning-partnership-program */

const bodyLimitBytes = 262_144;

/** Bodies at once. Anybody can name GitHub's public keys, and so send a body before its signature is checked. */
const bodiesAtOnce = { totalLimit: 64, groupLimit: 16 };

const exampleToken = 'lk_k_01k9s3v5wqe8n8x4r2m6t7yb0c_Vx0…';
const exampleType = 'latchkey_api_key';
const exampleMatch = { token: exampleToken, type: exampleType, url: '', source: 'commit' };

const match = z
  .looseObject({
    token: z.string().min(1),
    type: z.string().optional().meta({ description: 'The name of the pattern, as agreed with GitHub.' }),
    url: z.string().nullish().meta({ description: 'Where the token was found; may be empty.' }),
    source: z.string().nullish().meta({ description: 'What contained it, such as `commit` or `issue_comment`.' }),
  })
  .meta({ id: 'GithubMatch', example: exampleMatch });

const matches = z
  .array(match)
  .max(1_000)
  .meta({
    id: 'GithubMatches',
    example: [exampleMatch],
  });

const label = z.enum(['true_positive', 'false_positive']).meta({ id: 'GithubLabel' });

const feedback = z.object({ token_raw: z.string(), token_type: z.string(), label }).meta({
  id: 'GithubFeedback',
  example: { token_raw: exampleToken, token_type: exampleType, label: 'true_positive' },
});

const feedbackList = z.array(feedback).meta({ id: 'GithubFeedbackList' });

const github = systemActor('github_secret_scanning', 'GitHub secret scanning');

/** Takes the reports of GitHub's secret scanning. */
export const githubLeakRoutes: FastifyPluginAsyncZod<{ reports: LeakReports; keys: GithubKeys }> = async (
  app,
  { reports, keys },
) => {
  const bodies = createConcurrencyLimit({ resources: 'reports of GitHub', ...bodiesAtOnce, retryAfterSeconds: 1 });
  const keyOf = async (request: FastifyRequest) => {
    const identifier = headerOf(request, 'github-public-key-identifier');
    const key = await keys.find(identifier);
    if (key === undefined) throw notGithub('GitHub does not list the key that Github-Public-Key-Identifier names.');
    return key;
  };

  app.addHook('onRequest', async (request, reply) => {
    onceClosed(reply.raw, bodies.acquire(networkOf(request.facts.ip)));
    headerOf(request, 'github-public-key-signature');
    await keyOf(request);
  });
  app.removeContentTypeParser('application/json');
  app.addContentTypeParser('application/json', { parseAs: 'buffer' }, async (request: FastifyRequest, body: Buffer) => {
    const signature = Buffer.from(headerOf(request, 'github-public-key-signature'), 'base64');
    if (!verify('sha256', body, await keyOf(request), signature))
      throw notGithub('The signature does not fit the body.');
    return parseSignedJson(body);
  });

  app.post(
    '/leaks/github',
    {
      bodyLimit: bodyLimitBytes,
      config: { access: 'public', problems: ['forbidden', 'unavailable', 'overloaded', 'not_found'] },
      schema: {
        operationId: 'reportLeaksFromGithub',
        tags: ['Leaks'],
        summary: "Take a report of GitHub's secret scanning",
        description:
          "GitHub's secret scanning partner protocol: the body is signed by ECDSA P-256 over SHA-256, in the headers " +
          '`Github-Public-Key-Identifier` and `Github-Public-Key-Signature`. Only if `GITHUB_KEYS_URL` is set. At most 1,000 ' +
          'matches in 256 KiB. `true_positive`: the token is a credential of this installation, live or deleted.',
        body: matches,
        response: { 200: feedbackList },
      },
    },
    async (request) => {
      const by = { actor: github, organizationId: null, request: request.facts, trace: request.span?.context };
      const answers = request.body.map(async ({ token, type = '', url, source }) => {
        const clean = (of: string, most: number) => storable(of, token, { secrets: app.secretText, most });
        const place = {
          source: clean(`GitHub secret scanning: ${source ?? 'unknown'}`, longestPlace.source),
          url: clean(url ?? '', longestPlace.url),
        };
        const { isCredential } = await reports.report(token, { ...place, note: null }, by);
        return { token_raw: token, token_type: type, label: labelOf(isCredential) };
      });
      return Promise.all(answers);
    },
  );
};

function labelOf(isCredential: boolean) {
  return isCredential ? ('true_positive' as const) : ('false_positive' as const);
}

/** @throws Problem `forbidden` if the header is missing */
function headerOf({ headers }: FastifyRequest, name: string): string {
  const value = headers[name];
  if (typeof value === 'string' && value !== '') return value;
  throw notGithub(`The header ${name} is missing.`);
}

function notGithub(detail: string): Problem {
  return new Problem('forbidden', `This route takes only requests that GitHub has signed. ${detail}`);
}
