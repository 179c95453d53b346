import type { FastifyPluginAsyncZod } from 'fastify-type-provider-zod';
import { z } from 'zod';
import type { Transactor } from '../database/work.ts';
import { isId, type OrganizationId, type PartnerId } from '../domain/ids.ts';
import { decodeCursor, toPage } from '../domain/page.ts';
import type { Access, Permission } from '../domain/permissions.ts';
import { organizationOf } from '../http/guard.ts';
import { listOf } from '../http/list.ts';
import { idView, pageOf, pageQuery, permissionSchema } from '../http/schemas.ts';
import { expiringSoon, rowCapacity } from '../keys/policy.ts';
import { liveKeysOfOwners, type ShownKey } from '../keys/store.ts';
import { type KeyViewContext, keyView, toKeyView } from '../keys/views.ts';
import { listPartnerRows, type PartnerRow, type RowPosition } from './store.ts';

const rowView = z
  .object({
    partnerId: idView('partner').nullable().meta({ description: "Null for the organization's default row." }),
    partnerEmail: z.string().nullable().meta({ example: 'team@partner.example' }),
    permission: permissionSchema,
    keys: z.array(keyView).meta({ description: 'The live keys, oldest first. A row has at most two.' }),
    freePlaces: z.int().meta({ example: 1 }),
    expiringSoon: z.array(idView('key')).meta({ description: 'Keys that expire within 7 days, earliest first.' }),
  })
  .meta({ id: 'Row' });

interface Row {
  partner: PartnerRow | null;
  permission: Permission;
}

const defaultRow: Row = { partner: null, permission: 'read_write' };

export interface RowRoutesOptions {
  transactor: Transactor;
  tokenPrefix: string;
  undoWindowSeconds: number;
}

export const rowRoutes: FastifyPluginAsyncZod<RowRoutesOptions> = async (app, options) => {
  const { transactor, tokenPrefix, undoWindowSeconds } = options;
  const { db, clock } = transactor;

  app.get(
    '/rows',
    {
      config: { access: { role: 'admin', scope: 'read' }, problems: ['cursor_invalid'] },
      schema: {
        operationId: 'listRows',
        tags: ['Rows'],
        summary: "List rows with their live keys: the default row first, then the partners' rows",
        querystring: z.strictObject(pageQuery),
        response: { 200: pageOf('RowPage', rowView) },
      },
    },
    async (request) => {
      const { limit, cursor } = request.query;
      const organizationId = organizationOf(request);
      const rows = await readRows(organizationId, limit, decodeCursor(listOf(request), cursor, isRowCursor));
      const now = new Date(clock.nowMs());
      const keys = await liveKeysOfOwners(
        db,
        organizationId,
        rows.map((row) => row.partner?.partnerId ?? null),
      );
      const context = { tokenPrefix, undoWindowSeconds, now };
      return toPage(listOf(request), rows, limit, cursorOf, (row) => toView(row, keys, context));
    },
  );

  /** Up to `limit + 1` rows. The default row counts as the first. */
  async function readRows(organizationId: OrganizationId, limit: number, after: RowCursor | undefined): Promise<Row[]> {
    const first = after === undefined ? [defaultRow] : [];
    const count = limit + 1 - first.length;
    const partnerRows = await listPartnerRows(db, organizationId, { count, after: partnerPosition(after) });
    return [...first, ...partnerRows.map((partner) => ({ partner, permission: partner.permission }))];
  }
};

type RowCursor = 'default' | `${PartnerId}/${Access}`;

function cursorOf({ partner }: Row): RowCursor {
  return partner === null ? 'default' : `${partner.partnerId}/${partner.permission}`;
}

function isRowCursor(text: string): text is RowCursor {
  return text === 'default' || partnerPosition(text) !== undefined;
}

function partnerPosition(cursor: string | undefined): RowPosition | undefined {
  const [partnerId = '', permission] = cursor?.split('/') ?? [];
  if (!isId('partner', partnerId) || (permission !== 'read' && permission !== 'write')) return undefined;
  return { partnerId, permission };
}

function toView(row: Row, allKeys: readonly ShownKey[], context: KeyViewContext): z.infer<typeof rowView> {
  const partnerId = row.partner?.partnerId ?? null;
  const keys = allKeys.filter((key) => key.partner_id === partnerId && key.permission === row.permission);
  return {
    partnerId,
    partnerEmail: row.partner?.partnerEmail ?? null,
    permission: row.permission,
    keys: keys.map((key) => toKeyView(key, context)),
    freePlaces: rowCapacity - keys.length,
    expiringSoon: expiringSoon(keys, context.now),
  };
}
