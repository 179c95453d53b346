import { z } from 'zod';
import { actorView, idView, timestampView } from '../http/schemas.ts';
import { isOverdue, recoveryStatuses } from './policy.ts';
import type { RecoveryRequest } from './store.ts';

export const recoveryStatusSchema = z.enum(recoveryStatuses).meta({ id: 'RecoveryStatus' });

export const recoveryRequestView = z
  .object({
    id: idView('recovery'),
    organizationId: idView('org'),
    keyId: idView('key').nullable().meta({ description: 'Null where a partner is asked back.' }),
    partnerId: idView('partner').nullable().meta({ description: 'Null where a key is asked back.' }),
    details: z.string().meta({ example: 'Deleted by mistake; the billing export needs it.' }),
    status: recoveryStatusSchema,
    respondBy: timestampView.meta({
      description: 'An answer is due 24 hours after the request, or before what was deleted is purged.',
    }),
    overdue: z.boolean().meta({ description: 'Open, and past respondBy.' }),
    createdAt: timestampView,
    createdBy: actorView,
    answeredAt: timestampView.nullable(),
    answeredBy: actorView.nullable(),
    note: z.string().nullable().meta({ description: "The operator's, for the admin.", example: 'As agreed by phone.' }),
  })
  .meta({ id: 'RecoveryRequest' });

export function toRecoveryRequestView(request: RecoveryRequest, now: Date): z.infer<typeof recoveryRequestView> {
  return {
    id: request.id,
    organizationId: request.organization_id,
    keyId: request.key_id,
    partnerId: request.partner_id,
    details: request.details,
    status: request.status,
    respondBy: request.respond_by.toISOString(),
    overdue: isOverdue(request, now),
    createdAt: request.created_at.toISOString(),
    createdBy: request.created_by,
    answeredAt: request.answered_at?.toISOString() ?? null,
    answeredBy: request.answered_by,
    note: request.note,
  };
}
