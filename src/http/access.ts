import type {} from 'fastify';
import type { Access } from '../domain/permissions.ts';

export type Role = 'operator' | 'admin' | 'verifier';

/**
 * Who may call a route, declared beside it as `config: { access }`. A route without one does not start.
 *
 * - `public`: nobody is asked for a credential.
 * - `admin`: an admin, in its own organization; or an operator, in the organization that it names in
 *   `Latchkey-Organization`. With `installation: true` an operator may name none, and then acts on the installation.
 *   With `operator: false` operators are refused.
 * - `operator`, `verifier`: that role and no other. With `clientSecret: true` the token may also come as the secret of an
 *   OAuth client, by HTTP Basic or in the form (RFC 6749 section 2.3.1).
 * - `any`: every live credential, API keys too.
 * - `gateway`: a gateway that passes on somebody else's request and names itself by a verifier's token in
 *   `X-Latchkey-Token`. All else in the request is its client's.
 */
export type AccessRule =
  | 'public'
  | { role: 'admin'; scope: Access; installation?: true; operator?: false }
  | { role: 'operator'; scope: Access }
  | { role: 'verifier'; scope: Access; clientSecret?: true }
  | { role: 'any' }
  | { role: 'gateway' };

declare module 'fastify' {
  interface FastifyContextConfig {
    access?: AccessRule;
  }
}
