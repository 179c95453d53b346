import { z } from 'zod';
import { problemCodes, problemKinds } from '../domain/errors.ts';
import { isId, type RefusalId } from '../domain/ids.ts';
import { exampleId, idView, timestampView } from '../http/schemas.ts';
import type { ListedRefusals } from './store.ts';

/** The problem codes with which known callers can be rejected. */
export const refusalCodes = problemCodes.filter((code) => [403, 429].includes(problemKinds[code].status));

/** Typed as text, so that codes of other versions can be read. */
export const refusalCodeSchema = z.string().meta({ id: 'RefusalCode', enum: refusalCodes });

export const refusalView = z
  .object({
    id: idView('refusal'),
    organizationId: idView('org').nullable().meta({ description: 'Null for the installation.' }),
    hour: timestampView.meta({ description: 'The start of the hour of these attempts, in UTC.' }),
    caller: z
      .object({
        type: z.enum(['admin', 'operator', 'verifier', 'api_key']).meta({ id: 'CallerType' }),
        id: z.string(),
        name: z.string().nullable(),
        email: z.string().nullable(),
      })
      .meta({
        id: 'RefusedCaller',
        example: { type: 'verifier', id: exampleId('token'), name: 'Checkout backend', email: null },
      })
      .nullable()
      .meta({
        description:
          'The caller at the time of the last attempt. Null together with operation if several callers share this entry because there were too many.',
      }),
    operation: z.string().nullable().meta({ description: 'The operationId in this document.', example: 'revealKey' }),
    status: z.int().meta({ example: 403 }),
    code: refusalCodeSchema,
    count: z.int().meta({ example: 3 }),
    firstAt: timestampView,
    lastAt: timestampView,
    lastIp: z.string().nullable().meta({ description: 'Null if unknown.', example: '203.0.113.7' }),
  })
  .meta({
    id: 'RefusedAttempts',
    description: 'How often an operation rejected a caller for one reason within an hour.',
  });

export function toRefusalView(refusals: ListedRefusals): z.infer<typeof refusalView> {
  const { id, organizationId, caller, operation, code, count, lastIp } = refusals;
  const status = problemKinds[code as (typeof problemCodes)[number]].status;
  const hour = refusals.hour.toISOString();
  const [firstAt, lastAt] = [refusals.firstAt.toISOString(), refusals.lastAt.toISOString()];
  return { id, organizationId, hour, caller, operation, status, code, count, firstAt, lastAt, lastIp };
}

export const isRefusalId = (text: string): text is RefusalId => isId('refusal', text);
