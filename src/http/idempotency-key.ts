import { createHash } from 'node:crypto';
import type { FastifyRequest } from 'fastify';
import { canonicalJson } from '../core/canonical-json.ts';
import { Problem } from '../core/errors.ts';
import { accessTokenOf } from './guard.ts';

/** What a request with an `Idempotency-Key` asks for: to be done once. */
export interface Claim {
  /** SHA-256 of caller, organization, route and key. The key itself is nowhere kept: callers put all sorts of things there. */
  address: Buffer;
  /** SHA-256 of query and body: what a second request must have in common with the first. */
  requestHash: Buffer;
}

/**
 * Undefined where the request has no `Idempotency-Key`.
 * @throws Problem `validation_failed` unless it is one, of 1 to 255 printable ASCII characters
 */
export function claimOf(request: FastifyRequest): Claim | undefined {
  const key = request.headers['idempotency-key'];
  if (key === undefined) return undefined;
  if (typeof key !== 'string' || !/^[\x20-\x7e]{1,255}$/.test(key)) {
    throw invalid('must be 1 to 255 printable ASCII characters');
  }
  // Node joins what is repeated with a comma, which a key may have in itself.
  const names = request.raw.rawHeaders.filter((_, index) => index % 2 === 0);
  if (names.filter((name) => name.toLowerCase() === 'idempotency-key').length > 1) {
    throw invalid('must not be sent more than once');
  }
  const { id, actsIn } = accessTokenOf(request);
  const route = [request.method, request.routeOptions.url, request.params];
  return {
    address: sha256([id, actsIn, route, key]),
    // No body, null and {} ask for the same.
    requestHash: sha256([request.query, request.body ?? {}]),
  };
}

function sha256(value: unknown): Buffer {
  return createHash('sha256').update(canonicalJson(value)).digest();
}

function invalid(message: string): Problem {
  const error = { path: 'headers.idempotency-key', message };
  return new Problem('validation_failed', `${error.path}: ${error.message}`, { errors: [error] });
}
