import { z } from 'zod';
import { actorView, idView, timestampView } from '../http/schemas.ts';
import { isOverdue, recoveryStatuses } from './policy.ts';
import type { RecoveryRequest } from './store.ts';

export const recoveryStatusSchema = z.enum(recoveryStatuses).meta({ id: 'RecoveryStatus' });

export const recoveryRequestView = z
  .object({
    id: idView('recovery'),
    organizationId: idView('org'),
    keyId: idView('key').nullable().meta({ description: 'Null if the request is about a partner.' }),
    partnerId: idView('partner').nullable().meta({ description: 'Null if the request is about a key.' }),
    details: z.string().meta({ example: 'Deleted by mistake; the billing export needs it.' }),
    status: recoveryStatusSchema,
    respondBy: timestampView.meta({
      description: 'When the answer is due: 24 hours after the request, or before the key or partner is purged.',
    }),
    overdue: z.boolean().meta({ description: 'True if the request is open after respondBy.' }),
    createdAt: timestampView,
    createdBy: actorView,
    answeredAt: timestampView.nullable(),
    answeredBy: actorView.nullable(),
    note: z
      .string()
      .nullable()
      .meta({ description: "The operator's note for the admin.", example: 'As agreed by phone.' }),
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
