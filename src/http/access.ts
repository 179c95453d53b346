import type {} from 'fastify';
import type { Access } from '../core/permissions.ts';

export type Role = 'operator' | 'admin' | 'verifier';

/**
 * Who may call a route, declared beside it as `config: { access }`. A route without one does not start.
 *
 * - `public`: nobody is asked for a credential.
 * - `admin`: an admin, in its own organization; or an operator, in the organization that it names in
 *   `Latchkey-Organization`. With `installation: true` an operator may name none, and then acts on the installation.
 *   With `operator: false` operators are refused.
 * - `operator`, `verifier`: that role and no other.
 * - `any`: every live credential, API keys too.
 */
export type AccessRule =
  | 'public'
  | { role: 'admin'; scope: Access; installation?: true; operator?: false }
  | { role: 'operator' | 'verifier'; scope: Access }
  | { role: 'any' };

declare module 'fastify' {
  interface FastifyContextConfig {
    access?: AccessRule;
  }
}
