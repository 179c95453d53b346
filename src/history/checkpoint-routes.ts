import type { FastifyPluginAsyncZod } from 'fastify-type-provider-zod';
import { z } from 'zod';
import { accessTokenOf } from '../http/guard.ts';
import { chainOf } from './chain.ts';
import type { Checkpoints } from './checkpoints.ts';

const plainText = 'text/plain; charset=utf-8';

const noteExample =
  'latchkey/org_01k9s3v5wqe8n8x4r2m6t7yb0c\n42\nn4bQgYhMfWWaL+qgxVrQFaO/TxsrC4Is0V1sFbDwCgg=\n\n' +
  '— latchkey 0tHILZHRxFNndDkNhpEMUlB2z6tnJUPc3qpD1fwB/XKatP0+nULIz6jZtdqB40nNGbkw1je1bQFgHt+3FLv56QU12gI=\n';

const keyExample =
  'latchkey+d2d1c82d+AYqI4910CfGV/VLbLTy6XXLKZwm/HZQSG/N0iAG0D29c\n' +
  '-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEAiojj3XQJ8ZX9UtstPLpdcspnCb8dlBIb83SIAbQPb1w=\n-----END PUBLIC KEY-----\n';

/** The signed head of a chain, to be kept where neither this service nor its database can change it. */
export const checkpointRoutes: FastifyPluginAsyncZod<{ checkpoints: Checkpoints }> = async (app, { checkpoints }) => {
  app.get(
    '/history/checkpoint',
    {
      config: { access: { role: 'admin', scope: 'read', installation: true }, problems: ['history_altered'] },
      schema: {
        operationId: 'getHistoryCheckpoint',
        tags: ['History'],
        summary: 'How long the history is and what it ends in, signed',
        description:
          'A C2SP signed note: origin, number of events, hash of the last event in base64, and Ed25519 signatures. ' +
          'Kept elsewhere it shows later whether anything before it was changed or cut off. ' +
          'docs/history.md says how; the public key is at /.well-known/latchkey-history-key.',
        produces: ['text/plain'],
        response: { 200: z.string().meta({ example: noteExample }) },
      },
    },
    async (request, reply) =>
      reply.type(plainText).send(await checkpoints.sign(chainOf(accessTokenOf(request).actsIn))),
  );
};

export const publicKeyRoutes: FastifyPluginAsyncZod<{ checkpoints: Checkpoints }> = async (app, { checkpoints }) => {
  app.get(
    '/.well-known/latchkey-history-key',
    {
      config: { access: 'public' },
      schema: {
        operationId: 'getHistoryKey',
        tags: ['History'],
        summary: 'The public keys that checkpoints are checked with',
        description:
          'For each entry of the keyring, the primary first: a line for tools that know signed notes, and the same key ' +
          'as PEM. Keep them: a key that comes with what it is to check proves nothing.',
        produces: ['text/plain'],
        response: { 200: z.string().meta({ example: keyExample }) },
      },
    },
    async (_request, reply) => reply.type(plainText).send(checkpoints.publicKeys),
  );
};
