import type { FastifyPluginAsyncZod } from 'fastify-type-provider-zod';
import { z } from 'zod';
import type { Db } from '../database/client.ts';
import { decodeCursor, toPage } from '../domain/page.ts';
import { isSequence } from '../history/store.ts';
import { organizationOf } from '../http/guard.ts';
import { listOf } from '../http/list.ts';
import { actorSnapshotView, actorView, idParam, pageOf, pageQuery, timestampView } from '../http/schemas.ts';
import { getKeyOwner } from './store.ts';
import { listViewers, type Viewer } from './viewers-store.ts';

const revealsShown = 20;

const viewerView = z
  .object({
    admin: actorView.meta({ description: 'The admin at the time of the last reveal.' }),
    tokenCreatedBy: actorView.nullable().meta({ description: "The creator of the admin's access token." }),
    tokenCreatorChain: z
      .array(actorSnapshotView)
      .nullable()
      .meta({ description: 'The chain of creators of the access token, from the root to tokenCreatedBy.' }),
    times: z.int().meta({ example: 3 }),
    first: timestampView,
    last: timestampView,
    looks: z
      .array(
        z
          .object({
            at: timestampView,
            reason: z.string().nullable().meta({ example: 'The partner lost it' }),
            recipient: z.string().nullable().meta({ example: 'ops@partner.example' }),
          })
          .meta({ id: 'KeyLook' }),
      )
      .meta({ description: `The last ${revealsShown} reveals, newest first. The key's history has all of them.` }),
  })
  .meta({ id: 'Viewer' });

type ViewerView = z.infer<typeof viewerView>;

export const keyViewersRoutes: FastifyPluginAsyncZod<{ db: Db }> = async (app, { db }) => {
  app.get(
    '/keys/:keyId/viewers',
    {
      config: { access: { role: 'admin', scope: 'read' }, problems: ['cursor_invalid'] },
      schema: {
        operationId: 'listKeyViewers',
        tags: ['Keys'],
        summary: 'List who has revealed a key',
        description: [
          "Ordered by each viewer's first reveal, newest first. Works for deleted and purged keys too.",
          'Counts stored events only: reveals whose events were archived are in the files of the archives.',
          'Not listed: the creator in createdBy, who saw the key unless a claim created it, and holders of redeemed claims:',
          'see `GET /v1/claims?keyId=`.',
        ].join(' '),
        params: z.object({ keyId: idParam("The key's id.") }),
        querystring: z.strictObject(pageQuery),
        response: { 200: pageOf('ViewerPage', viewerView) },
      },
    },
    async (request) => {
      const { limit, cursor } = request.query;
      const organizationId = organizationOf(request);
      const position = decodeCursor(listOf(request), cursor, isSequence);
      const before = position === undefined ? undefined : Number(position);
      const { keyId } = await getKeyOwner(db, organizationId, request.params.keyId);
      const viewers = await listViewers(db, organizationId, keyId, { limit, before, revealsShown });
      return toPage(listOf(request), viewers, limit, (viewer) => String(viewer.first_sequence), toView);
    },
  );
};

function toView({ token_created_by, token_creator_chain, ...viewer }: Viewer): ViewerView {
  const { admin, times, first, last, looks } = viewer;
  const tokenCreatorChain = token_creator_chain === null ? null : [...token_creator_chain];
  return { admin, tokenCreatedBy: token_created_by, tokenCreatorChain, times, first, last, looks };
}
