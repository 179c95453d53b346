import type { FastifyReply, FastifyRequest } from 'fastify';
import fp from 'fastify-plugin';
import { isBasic, readCredential, unauthorized } from '../credentials/presented.ts';
import type { ActorContext, OrganizationContext } from '../database/work.ts';
import { Problem } from '../domain/errors.ts';
import { isId, type OrganizationId } from '../domain/ids.ts';
import type { TokenScope } from '../domain/permissions.ts';
import { type ApiKeyPrincipal, actorOf, type CallerPrincipal, type Principal } from '../domain/principal.ts';
import { andThen, callBack, type MaybePromise, withCatch } from '../lib/maybe-promise.ts';
import type { OidcAuthenticator } from '../oidc/authenticator.ts';
import { type AccessRule, isAnonymous, type KeyObstacle } from './access.ts';

declare module 'fastify' {
  interface FastifyRequest {
    /** The authenticated identity; null for an anonymous request. The guard sets it before any handler runs. */
    principal: Principal | null;
  }
}

/** Authenticates bearer tokens. */
export interface Authenticator {
  /**
   * @param admits accept an API key in spite of these
   * @throws Problem `token_malformed`, `unauthorized`, `token_expired`, `unavailable`
   */
  authenticate(token: string, admits?: readonly KeyObstacle[]): MaybePromise<Principal>;
}

interface GuardOptions {
  authenticator: Authenticator;
  /** Undefined: no identity provider is configured. */
  oidcAuthenticator?: OidcAuthenticator | undefined;
  organizationExists: (id: OrganizationId) => Promise<boolean>;
}

type ProtectedRule = Exclude<AccessRule, 'public' | { role: 'gateway' }>;

/** The header with the gateway's own token. All other headers come from its client. */
export const gatewayHeader = 'x-latchkey-token';

/**
 * Authorizes each request by its route's `config.access`. It rejects in `onRequest`, before the body is read, unless the
 * body may carry a client secret.
 */
export const guard = fp<GuardOptions>(
  async (app, { authenticator, oidcAuthenticator, organizationExists }) => {
    app.decorateRequest('principal', null);
    app.addHook('onRequest', (request, reply, done) => {
      const rule = request.routeConfig.access;
      if (rule === undefined || rule === 'public' || isAnonymous(request) || mayUseFormCredential(request, rule))
        done();
      else callBack(() => authorize(request, reply, rule), done);
    });
    app.addHook('preValidation', (request, reply, done) => {
      const rule = request.routeConfig.access;
      if (!takesClientSecret(rule)) done();
      else if (request.principal === null) callBack(() => authorize(request, reply, rule), done);
      else done(hasConflictingCredential(request) ? conflictingCredentials() : undefined);
    });

    function authorize(
      request: FastifyRequest,
      reply: FastifyReply,
      rule: Exclude<AccessRule, 'public'>,
    ): MaybePromise<void> {
      if (rule.role === 'gateway') {
        return andThen(identifyGateway(request, reply), (principal) => {
          request.principal = principal;
        });
      }
      return andThen(identify(request, reply, rule), (principal) => {
        request.principal = principal;
        if (rule.role === 'admin' || rule.role === 'operator' || rule.role === 'api_key')
          app.endpointLimits.countCaller(request, reply);
        requireRole(rule, principal);
        if (principal.kind === 'api_key') return;
        if (rule.role === 'api_key') return;
        if (rule.role !== 'any') requireScope(principal, rule.scope);
        return andThen(organizationFor(request, rule, principal), (organizationId) => {
          principal.actsIn = organizationId;
        });
      });
    }

    function identify(request: FastifyRequest, reply: FastifyReply, rule: ProtectedRule): MaybePromise<Principal> {
      return withCatch<Principal>(
        () => {
          const token = credentialOf(request, rule);
          if (token === undefined) {
            throw unauthorized(
              'unauthorized',
              'The request has no credential. Send an access token as Authorization: Bearer <token>.',
            );
          }
          return oidcAuthenticator?.isToken(token)
            ? oidcAuthenticator.authenticate(token)
            : authenticator.authenticate(token, rule.role === 'api_key' ? rule.admits : undefined);
        },
        (error) => {
          if (!(error instanceof Problem) || error.status !== 401) throw error;
          app.endpointLimits.countRefusal(request, reply);
          if (!takesClientSecret(rule) || !isBasic(request.headers.authorization)) throw error;
          // RFC 6749 section 5.2: the challenge names the scheme that the client used.
          throw new Problem(error.code, error.detail, { headers: { 'www-authenticate': 'Basic realm="latchkey"' } });
        },
      );
    }

    /** A wrong gateway token is an operator's mistake, not the client's: the reply is 503, and the log names the cause. */
    function identifyGateway(request: FastifyRequest, reply: FastifyReply): MaybePromise<Principal> {
      const token = request.headers[gatewayHeader];
      const refuse = (cause: unknown) => {
        // Each of these requests logs an error, and anyone can send them.
        app.endpointLimits.countRefusal(request, reply);
        return new Problem(
          'unavailable',
          "The gateway's token is not accepted. The log names the cause under this request id.",
          {
            cause: new Error(
              `${gatewayHeader} of ${request.facts.ip} is not the token of a verifier with the scope read`,
              { cause },
            ),
          },
        );
      };
      if (typeof token !== 'string') throw refuse(undefined);
      const identified = withCatch<Principal>(
        () => authenticator.authenticate(token),
        (error) => {
          throw error instanceof Problem && error.status === 401 ? refuse(error) : error;
        },
      );
      return andThen(identified, (principal) => {
        const isVerifier =
          principal.kind === 'access_token' && principal.role === 'verifier' && principal.scopes.includes('read');
        if (!isVerifier) throw refuse(undefined);
        return principal;
      });
    }

    /** The organization in which a request acts: the one in `Latchkey-Organization`, otherwise the caller's own. */
    function organizationFor(
      { headers }: FastifyRequest,
      rule: ProtectedRule,
      principal: CallerPrincipal,
    ): MaybePromise<OrganizationId | null> {
      const named = headers['latchkey-organization'];
      if (named === undefined) return ownOrganization(rule, principal);
      // No lookup for the caller's own organization: every verification would wait for the database.
      if (named === principal.organizationId) return principal.organizationId;
      return foreignOrganization(rule, principal, named);
    }

    async function foreignOrganization(
      rule: ProtectedRule,
      principal: CallerPrincipal,
      named: string | string[],
    ): Promise<OrganizationId> {
      if (principal.organizationId === null && typeof named === 'string' && isId('org', named)) {
        if (await organizationExists(named)) return named;
      }
      const problem = 'The organization in the Latchkey-Organization header does not exist.';
      if (rule.role === 'admin') throw new Problem('not_found', `${problem} Check its id.`);
      // A client of these routes would take 404 for the subject of its request.
      throw new Problem('bad_request', `${problem} Leave out the header: this request does not need it.`);
    }
  },
  { name: 'guard', dependencies: ['endpoint-limits'] },
);

function takesClientSecret(rule: AccessRule | undefined): rule is ProtectedRule & { clientSecret: true } {
  return typeof rule === 'object' && rule.role === 'verifier' && rule.clientSecret === true;
}

/** Without a credential in the headers, the form may carry one (RFC 6749 section 2.3.1). */
function mayUseFormCredential({ headers }: FastifyRequest, rule: AccessRule): boolean {
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

function hasConflictingCredential(request: FastifyRequest): boolean {
  const inForm = secretInForm(request);
  return inForm !== undefined && inForm !== readCredential(request.raw, true);
}

function conflictingCredentials(): Problem {
  return new Problem('bad_request', 'The headers and client_secret carry different credentials. Send one of them.');
}

function ownOrganization(rule: ProtectedRule, principal: CallerPrincipal): OrganizationId | null {
  const needsOne = principal.role === 'operator' && rule.role === 'admin' && rule.installation !== true;
  if (!needsOne) return principal.organizationId;
  throw new Problem('bad_request', 'An operator must name the organization in the Latchkey-Organization header.');
}

function requireRole(rule: ProtectedRule, principal: Principal): void {
  if (rule.role === 'any') return;
  const role = principal.kind === 'api_key' ? 'api_key' : principal.role;
  if (role === rule.role || (rule.role === 'admin' && role === 'operator' && rule.operator !== false)) return;
  if (rule.role === 'api_key') throw new Problem('forbidden', 'Only an API key may do this, for itself.');
  throw wrongRole(role, rule.role);
}

function wrongRole(role: string, requiredRole: string): Problem {
  const who = role === 'api_key' ? 'An API key' : `The role ${role}`;
  return new Problem('forbidden', `${who} may not do this. Use an access token with the role ${requiredRole}.`, {
    members: { requiredRole },
  });
}

/** The challenge follows RFC 6750 section 3.1. */
function requireScope(principal: CallerPrincipal, scope: TokenScope): void {
  if (principal.scopes.includes(scope)) return;
  const origin =
    principal.kind === 'oidc'
      ? `Your identity provider gives it by the roles in OIDC_${scope.toUpperCase()}_ROLES.`
      : 'The scopes of a token never change: a caller that has this scope can create another token with it.';
  throw new Problem(
    'scope_missing',
    `This needs the scope ${scope}. The token has only ${principal.scopes.join(' ')}. ${origin}`,
    {
      members: { requiredScope: scope },
      headers: { 'www-authenticate': `Bearer realm="latchkey", error="insufficient_scope", scope="${scope}"` },
    },
  );
}

/**
 * For routes where only some requests lead to the plaintext of an existing key. A route that always does declares it in
 * its `access`.
 * @throws Problem `forbidden` for an operator, `scope_missing`
 */
export function requireRevealing(request: FastifyRequest): void {
  const principal = accessTokenOf(request);
  if (principal.role !== 'admin') throw wrongRole(principal.role, 'admin');
  requireScope(principal, 'reveal');
}

/** The principal on routes that admit only access tokens, of Latchkey or of an identity provider. */
export function accessTokenOf(request: FastifyRequest): CallerPrincipal {
  const { principal } = request;
  if (principal === null || principal.kind === 'api_key') throw new Error('this route must admit access tokens only');
  return principal;
}

/** The API key on routes that admit only API keys. */
export function apiKeyOf({ principal }: FastifyRequest): ApiKeyPrincipal {
  if (principal?.kind !== 'api_key') throw new Error('this route must admit API keys only');
  return principal;
}

/** Who calls, and the organization in which the request acts. */
export function callerOf({ principal }: FastifyRequest): { principal: Principal; actsIn: OrganizationId | null } {
  if (principal === null) throw new Error('the guard has set no principal');
  return { principal, actsIn: principal.kind === 'api_key' ? principal.organizationId : principal.actsIn };
}

/** The actor, organization and request for history. */
export function actorContextOf(request: FastifyRequest): ActorContext {
  const { principal, actsIn } = callerOf(request);
  return { actor: actorOf(principal), organizationId: actsIn, request: request.facts, trace: request.span?.context };
}

/** Like `actorContextOf`, on routes that always act in an organization. */
export function organizationContextOf(request: FastifyRequest): OrganizationContext {
  return { ...actorContextOf(request), organizationId: organizationOf(request) };
}

/** The organization in which the request acts. */
export function organizationOf(request: FastifyRequest): OrganizationId {
  const { actsIn } = callerOf(request);
  if (actsIn === null) throw new Error('this route must admit only callers that act in an organization');
  return actsIn;
}
