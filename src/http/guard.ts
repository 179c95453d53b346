import type { FastifyReply, FastifyRequest } from 'fastify';
import fp from 'fastify-plugin';
import { isBasic, readCredential, unauthorized } from '../auth/credential.ts';
import type { People } from '../auth/people.ts';
import { type AccessTokenPrincipal, actorOf, type CallerPrincipal, type Principal } from '../auth/principal.ts';
import { Problem } from '../core/errors.ts';
import { isId, type OrganizationId } from '../core/ids.ts';
import type { ActorContext, OrganizationContext } from '../db/work.ts';
import type { AccessRule } from './access.ts';

declare module 'fastify' {
  interface FastifyRequest {
    /** Who calls; null on public routes. On others the guard has put it there before any handler runs. */
    principal: Principal | null;
  }
}

/** Bearer → Principal. */
export interface Authenticator {
  /** @throws Problem `token_malformed`, `unauthorized`, `token_expired`, `unavailable` */
  authenticate(token: string): Promise<Principal>;
  /**
   * The same at once, for an access token that was found right before; undefined: it has to be looked at.
   * @throws Problem `unauthorized`, `token_expired`
   */
  recall(token: string): AccessTokenPrincipal | undefined;
}

interface GuardOptions {
  authenticator: Authenticator;
  /** Undefined: nobody comes from an identity provider. */
  people?: People | undefined;
  organizationExists: (id: OrganizationId) => Promise<boolean>;
}

type ProtectedRule = Exclude<AccessRule, 'public' | { role: 'gateway' }>;

/** Where a gateway names itself; the other headers are its client's. */
export const gatewayHeader = 'x-latchkey-token';

/**
 * Lets a request through only as its route's `config.access` declares. Rejects in `onRequest`, before a body is read; only
 * where a client's secret may be in the body, after that.
 */
export const guard = fp<GuardOptions>(
  async (app, { authenticator, people, organizationExists }) => {
    app.decorateRequest('principal', null);
    app.addHook('onRequest', (request, reply, done) => {
      const rule = request.routeConfig.access;
      if (rule === undefined || rule === 'public' || mayComeInBody(request, rule) || letInAtOnce(request, rule)) done();
      else letIn(request, reply, rule).then(() => done(), done);
    });
    app.addHook('preValidation', (request, reply, done) => {
      const rule = request.routeConfig.access;
      if (!takesClientSecret(rule)) done();
      else if (request.principal === null) letIn(request, reply, rule).then(() => done(), done);
      else done(isContradicted(request) ? twoSecrets() : undefined);
    });

    /** Those that ask for every request of somebody else are known already, and nothing about them has to be waited for. */
    function letInAtOnce(request: FastifyRequest, rule: Exclude<AccessRule, 'public'>): boolean {
      if (rule.role !== 'verifier' && rule.role !== 'gateway') return false;
      const isGateways = rule.role === 'gateway';
      if (!isGateways && request.headers['latchkey-organization'] !== undefined) return false;
      const token = isGateways ? request.headers[gatewayHeader] : credentialOf(request, rule);
      const principal = typeof token === 'string' ? recall(token) : undefined;
      if (principal?.role !== 'verifier' || !principal.scopes.includes('read')) return false;
      request.principal = principal;
      return true;
    }

    /** What is wrong with a token that was right before is said where every refusal is. */
    function recall(token: string): AccessTokenPrincipal | undefined {
      try {
        return authenticator.recall(token);
      } catch (error) {
        if (error instanceof Problem) return undefined;
        throw error;
      }
    }

    async function letIn(
      request: FastifyRequest,
      reply: FastifyReply,
      rule: Exclude<AccessRule, 'public'>,
    ): Promise<void> {
      if (rule.role === 'gateway') {
        request.principal = await identifyGateway(request, reply);
        return;
      }
      const principal = await identify(request, reply, rule);
      request.principal = principal;
      if (rule.role === 'admin' || rule.role === 'operator') app.endpointLimits.countCaller(request, reply);
      requireRole(rule, principal);
      if (principal.kind === 'api_key') return;
      requireScope(rule, principal);
      const named = request.headers['latchkey-organization'];
      principal.actsIn =
        named === undefined ? ownOrganization(rule, principal) : await namedOrganization(principal, named);
    }

    async function identify(request: FastifyRequest, reply: FastifyReply, rule: ProtectedRule): Promise<Principal> {
      try {
        const token = credentialOf(request, rule);
        if (token === undefined) {
          throw unauthorized('unauthorized', 'Send an access token as Authorization: Bearer <token>.');
        }
        return await (people?.isToken(token) ? people.authenticate(token) : authenticator.authenticate(token));
      } catch (error) {
        if (!(error instanceof Problem) || error.status !== 401) throw error;
        app.endpointLimits.countRefusal(request, reply);
        if (!takesClientSecret(rule) || !isBasic(request.headers.authorization)) throw error;
        // RFC 6749 section 5.2: the challenge is of the scheme that the client has used.
        throw new Problem(error.code, error.detail, { headers: { 'www-authenticate': 'Basic realm="latchkey"' } });
      }
    }

    /** Who configured the gateway made the mistake, not its client: so 503, and a word in the log. */
    async function identifyGateway(request: FastifyRequest, reply: FastifyReply): Promise<Principal> {
      const token = request.headers[gatewayHeader];
      const refuse = (cause: unknown) => {
        // Strangers can ask so, too, and each such answer is an error in the log.
        app.endpointLimits.countRefusal(request, reply);
        return new Problem(
          'unavailable',
          'The token of the gateway is not accepted. The log says why, under this request id.',
          {
            cause: new Error(
              `${gatewayHeader} of ${request.facts.ip} is not the token of a verifier with the scope read`,
              { cause },
            ),
          },
        );
      };
      if (typeof token !== 'string') throw refuse(undefined);
      const principal = await authenticator.authenticate(token).catch((error: unknown) => {
        throw error instanceof Problem && error.status === 401 ? refuse(error) : error;
      });
      const mayAsk =
        principal.kind === 'access_token' && principal.role === 'verifier' && principal.scopes.includes('read');
      if (!mayAsk) throw refuse(undefined);
      return principal;
    }

    async function namedOrganization(principal: CallerPrincipal, named: string | string[]): Promise<OrganizationId> {
      const mayUse = principal.organizationId === null || principal.organizationId === named;
      if (typeof named === 'string' && isId('org', named) && mayUse) {
        // Its own is there for certain, and asking would make every verification wait for the database.
        if (named === principal.organizationId || (await organizationExists(named))) return named;
      }
      throw new Problem('not_found', 'There is no organization with the id in Latchkey-Organization.');
    }
  },
  { name: 'guard', dependencies: ['endpoint-limits'] },
);

function takesClientSecret(rule: AccessRule | undefined): rule is ProtectedRule & { clientSecret: true } {
  return typeof rule === 'object' && rule.role === 'verifier' && rule.clientSecret === true;
}

/** Where there is no credential in the headers, one may be in the form (RFC 6749 section 2.3.1). */
function mayComeInBody({ headers }: FastifyRequest, rule: AccessRule): boolean {
  return takesClientSecret(rule) && headers.authorization === undefined && headers['x-api-key'] === undefined;
}

function credentialOf(request: FastifyRequest, rule: AccessRule): string | undefined {
  if (!takesClientSecret(rule)) return readCredential(request.raw);
  return readCredential(request.raw, true) ?? secretInForm(request);
}

function secretInForm({ body }: FastifyRequest): string | undefined {
  const secret = (body as { client_secret?: unknown } | null | undefined)?.client_secret;
  return typeof secret === 'string' ? secret : undefined;
}

function isContradicted(request: FastifyRequest): boolean {
  const inForm = secretInForm(request);
  return inForm !== undefined && inForm !== readCredential(request.raw, true);
}

function twoSecrets(): Problem {
  return new Problem('bad_request', 'The headers and client_secret carry different credentials. Send one of them.');
}

function ownOrganization(rule: ProtectedRule, principal: CallerPrincipal): OrganizationId | null {
  const needsOne = principal.role === 'operator' && rule.role === 'admin' && rule.installation !== true;
  if (!needsOne) return principal.organizationId;
  throw new Problem('bad_request', 'An operator names the organization in the Latchkey-Organization header.');
}

function requireRole(rule: ProtectedRule, principal: Principal): void {
  if (rule.role === 'any') return;
  const role = principal.kind === 'api_key' ? 'api_key' : principal.role;
  if (role === rule.role || (rule.role === 'admin' && role === 'operator' && rule.operator !== false)) return;
  const who = role === 'api_key' ? 'An API key' : `The role ${role}`;
  throw new Problem('forbidden', `${who} may not do this; it takes the role ${rule.role}.`, {
    members: { requiredRole: rule.role },
  });
}

/** The challenge is that of RFC 6750 section 3.1. */
function requireScope(rule: ProtectedRule, principal: CallerPrincipal): void {
  if (rule.role === 'any' || principal.scopes.includes(rule.scope)) return;
  throw new Problem(
    'scope_missing',
    `This needs the scope ${rule.scope}; the token has ${principal.scopes.join(' ')}.`,
    {
      members: { requiredScope: rule.scope },
      headers: {
        'www-authenticate': `Bearer realm="latchkey", error="insufficient_scope", scope="${rule.scope}"`,
      },
    },
  );
}

/** The principal of a route whose rule lets only access tokens in, Latchkey's own or an identity provider's. */
export function accessTokenOf(request: FastifyRequest): CallerPrincipal {
  const { principal } = request;
  if (principal === null || principal.kind === 'api_key') throw new Error('the route lets in more than access tokens');
  return principal;
}

/** Who does what this request asks, for history. */
export function actorContextOf(request: FastifyRequest): ActorContext {
  const principal = accessTokenOf(request);
  return {
    actor: actorOf(principal),
    organizationId: principal.actsIn,
    request: request.facts,
    trace: request.span?.context,
  };
}

/** The same on routes where an organization is always named. */
export function organizationContextOf(request: FastifyRequest): OrganizationContext {
  return { ...actorContextOf(request), organizationId: organizationOf(request) };
}

/** The organization in which this request acts. */
export function organizationOf(request: FastifyRequest): OrganizationId {
  const { actsIn } = accessTokenOf(request);
  if (actsIn === null) throw new Error('the route lets in callers without an organization');
  return actsIn;
}
