import type { FastifyRequest } from 'fastify';
import type { RefusedCaller } from '../database/tables/refused-attempts.ts';
import type { Problem, ProblemCode } from '../domain/errors.ts';
import { isId, type OrganizationId } from '../domain/ids.ts';
import type { Principal } from '../domain/principal.ts';
import { isAnonymous } from '../http/access.ts';
import type { RefusalRecorder } from './recorder.ts';

/** The problem codes with which a credential is rejected. `rate_limited`: it was rejected without being checked. */
export const credentialRefusals = [
  'unauthorized',
  'token_malformed',
  'token_expired',
  'rate_limited',
] as const satisfies readonly ProblemCode[];

export type CredentialRefusal = (typeof credentialRefusals)[number];

interface RefusalWatchOptions {
  recorder: Pick<RefusalRecorder, 'count'>;
  /** Counts requests with a rejected credential. Their callers are unknown. */
  tally: Record<CredentialRefusal, number>;
}

/**
 * Records rejections: an unknown caller gives a count and a log line, a known caller a count per hour. Rejections of a
 * gateway's clients, and of keys that query themselves too often, are not recorded.
 */
export function watchRefusals({ recorder, tally }: RefusalWatchOptions) {
  return (request: FastifyRequest, { code, status }: Problem): void => {
    const { access } = request.routeOptions.config;
    if (access === undefined || access === 'public' || access.role === 'gateway' || isAnonymous(request)) return;
    const { principal } = request;
    const operation = operationOf(request);
    if (principal === null) {
      if (!isCredentialRefusal(code)) return;
      tally[code] += 1;
      // Above the address's limit nothing is logged, so that the limit also bounds the log.
      if (status === 401) {
        request.log.info({ reqId: request.id, code, operation, ip: request.facts.ip }, 'A credential was rejected.');
      }
    } else if ((status === 403 || status === 429) && access.role !== 'any') {
      const organizationId = organizationOf(request, principal);
      recorder.count({ organizationId, caller: callerOf(principal), operation, code, ip: request.facts.ip });
    }
  };
}

function isCredentialRefusal(code: ProblemCode): code is CredentialRefusal {
  return credentialRefusals.some((refusal) => refusal === code);
}

function operationOf({ routeOptions: { schema, url = '' } }: FastifyRequest): string {
  return (schema as { operationId?: string } | undefined)?.operationId ?? url;
}

/** The caller's organization; for an operator the one that the request selects. */
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
