import { z } from 'zod';
import { problemCodes, problemKinds } from '../domain/errors.ts';
import { isId, type RefusalId } from '../domain/ids.ts';
import { exampleId, idView, timestampView } from '../http/schemas.ts';
import type { ListedRefusals } from './store.ts';

/** With what a known caller can be refused. */
export const refusalCodes = problemCodes.filter((code) => [403, 429].includes(problemKinds[code].status));

/** Text, so that a code of another version can be read. */
export const refusalCodeSchema = z.string().meta({ id: 'RefusalCode', enum: refusalCodes });

export const refusalView = z
  .object({
    id: idView('refusal'),
    organizationId: idView('org').nullable().meta({ description: 'Null: the installation itself.' }),
    hour: timestampView.meta({ description: 'The beginning of the hour, in UTC, in which these attempts were made.' }),
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
          'As it was at the last attempt. Null, and operation too: several, counted together because there were too many.',
      }),
    operation: z.string().nullable().meta({ description: 'An operationId of this document.', example: 'revealKey' }),
    status: z.int().meta({ example: 403 }),
    code: refusalCodeSchema,
    count: z.int().meta({ example: 3 }),
    firstAt: timestampView,
    lastAt: timestampView,
    lastIp: z.string().nullable().meta({ description: 'Null: not known.', example: '203.0.113.7' }),
  })
  .meta({
    id: 'RefusedAttempts',
    description: 'How often one caller was refused one operation within one hour, by reason.',
  });

export function toRefusalView(refusals: ListedRefusals): z.infer<typeof refusalView> {
  const { id, organizationId, caller, operation, code, count, lastIp } = refusals;
  const status = problemKinds[code as (typeof problemCodes)[number]].status;
  const hour = refusals.hour.toISOString();
  const [firstAt, lastAt] = [refusals.firstAt.toISOString(), refusals.lastAt.toISOString()];
  return { id, organizationId, hour, caller, operation, status, code, count, firstAt, lastAt, lastIp };
}

export const isRefusalId = (text: string): text is RefusalId => isId('refusal', text);
