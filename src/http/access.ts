import type { FastifyRequest } from 'fastify';
import type { TokenScope } from '../domain/permissions.ts';

/**
 * Who may call a route, declared as `config: { access }`. The service does not start if a route declares none.
 *
 * - `public`: anyone, without a credential.
 * - `admin`: an admin, in its own organization; or an operator, in the organization named by `Latchkey-Organization`.
 *   With `installation: true` an operator may omit the header and acts on the installation. With `operator: false`
 *   operators are rejected. With `anonymous: true` a request may also come without a credential: `principal` is then null.
 * - `operator`, `verifier`: only that role. With `clientSecret: true` the token may also be sent as an OAuth client secret,
 *   by HTTP Basic or in the form (RFC 6749 section 2.3.1).
 * - `any`: every valid credential, including API keys.
 * - `api_key`: only API keys. `admits` names the states in which a key is accepted although it is not valid; the command
 *   then decides. A deleted or expired key is accepted for the replay of its own earlier request.
 * - `gateway`: a gateway with a verifier's token in `X-Latchkey-Token`. All other headers come from the gateway's client.
 */
export type AccessRule =
  | 'public'
  | { role: 'admin'; scope: TokenScope; installation?: true; operator?: false; anonymous?: true }
  | { role: 'operator'; scope: TokenScope }
  | { role: 'verifier'; scope: TokenScope; clientSecret?: true }
  | { role: 'any' }
  | { role: 'api_key'; admits: readonly KeyObstacle[] }
  | { role: 'gateway' };

/** Why a key with the right secret may not be used. */
export type KeyObstacle = 'deleted' | 'suspended' | 'expired';

declare module 'fastify' {
  interface FastifyContextConfig {
    access?: AccessRule;
  }
}

/** Whether a route is for gateways. All headers of its requests but the gateway's token come from the gateway's client. */
export function isForGateways(access: AccessRule | undefined): boolean {
  return typeof access === 'object' && access.role === 'gateway';
}

/** Whether a route verifies keys, for backends or for gateways. */
export function isVerification(access: AccessRule | undefined): boolean {
  return typeof access === 'object' && (access.role === 'verifier' || access.role === 'gateway');
}

/** Whether a request may be, and is, without a credential. A credential that is sent to a public route does not matter. */
export function isAnonymous({
  routeConfig: { access },
  headers,
}: Pick<FastifyRequest, 'routeConfig' | 'headers'>): boolean {
  if (access === undefined || access === 'public') return access === 'public';
  if (access.role !== 'admin' || access.anonymous !== true) return false;
  return headers.authorization === undefined && headers['x-api-key'] === undefined;
}
