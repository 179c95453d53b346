import type { FastifyRequest } from 'fastify';
import type { RefusedCaller } from '../database/tables/refused-attempts.ts';
import type { Problem, ProblemCode } from '../domain/errors.ts';
import { isId, type OrganizationId } from '../domain/ids.ts';
import type { Principal } from '../domain/principal.ts';
import type { RefusalRecorder } from './recorder.ts';

/** With what a credential is refused; `rate_limited`: it was not worth a look any more. */
export const credentialRefusals = [
  'unauthorized',
  'token_malformed',
  'token_expired',
  'rate_limited',
] as const satisfies readonly ProblemCode[];

export type CredentialRefusal = (typeof credentialRefusals)[number];

interface RefusalWatchOptions {
  recorder: Pick<RefusalRecorder, 'note'>;
  /** Requests whose credential was refused: nobody knows who made them, so they are counted and nothing more. */
  tally: Record<CredentialRefusal, number>;
}

/**
 * Sees to it that refusals leave a trace: of a caller who is not known a count and a line in the log, of one who is known
 * a row by the hour. What a gateway's client was refused is none of these, nor a key that asks about itself too often.
 */
export function watchRefusals({ recorder, tally }: RefusalWatchOptions) {
  return (request: FastifyRequest, { code, status }: Problem): void => {
    const { access } = request.routeOptions.config;
    if (access === undefined || access === 'public' || access.role === 'gateway') return;
    const { principal } = request;
    const operation = operationOf(request);
    if (principal === null) {
      if (!isCredentialRefusal(code)) return;
      tally[code] += 1;
      // One that is over its address's limit is not worth a line: that limit is what bounds the lines.
      if (status === 401) {
        request.log.info({ reqId: request.id, code, operation, ip: request.facts.ip }, 'A credential was refused.');
      }
    } else if ((status === 403 || status === 429) && access.role !== 'any') {
      const organizationId = organizationOf(request, principal);
      recorder.note({ organizationId, caller: callerOf(principal), operation, code, ip: request.facts.ip });
    }
  };
}

function isCredentialRefusal(code: ProblemCode): code is CredentialRefusal {
  return credentialRefusals.some((refusal) => refusal === code);
}

function operationOf({ routeOptions: { schema, url = '' } }: FastifyRequest): string {
  return (schema as { operationId?: string } | undefined)?.operationId ?? url;
}

/** Its own; for one that has none the organization that it names, which is to know who knocked. */
function organizationOf(request: FastifyRequest, principal: Principal): OrganizationId | null {
  if (principal.organizationId !== null) return principal.organizationId;
  const named = request.headers['latchkey-organization'];
  return typeof named === 'string' && isId('org', named) ? named : null;
}

function callerOf(principal: Principal): RefusedCaller {
  const { id, name } = principal;
  if (principal.kind === 'api_key') return { type: 'api_key', id, name, email: null };
  return { type: principal.role, id, name, email: principal.email };
}
