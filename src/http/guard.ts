import type { FastifyReply, FastifyRequest } from 'fastify';
import fp from 'fastify-plugin';
import { isBasic, readCredential, unauthorized } from '../credentials/presented.ts';
import type { ActorContext, OrganizationContext } from '../database/work.ts';
import { Problem } from '../domain/errors.ts';
import { isId, type OrganizationId } from '../domain/ids.ts';
import { actorOf, type CallerPrincipal, type Principal } from '../domain/principal.ts';
import { andThen, callBack, type MaybePromise, withCatch } from '../lib/maybe-promise.ts';
import type { People } from '../oidc/people.ts';
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
  authenticate(token: string): MaybePromise<Principal>;
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
      if (rule === undefined || rule === 'public' || mayComeInBody(request, rule)) done();
      else callBack(() => authorize(request, reply, rule), done);
    });
    app.addHook('preValidation', (request, reply, done) => {
      const rule = request.routeConfig.access;
      if (!takesClientSecret(rule)) done();
      else if (request.principal === null) callBack(() => authorize(request, reply, rule), done);
      else done(isContradicted(request) ? twoSecrets() : undefined);
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
        if (rule.role === 'admin' || rule.role === 'operator') app.endpointLimits.countCaller(request, reply);
        requireRole(rule, principal);
        if (principal.kind === 'api_key') return;
        requireScope(rule, principal);
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
            throw unauthorized('unauthorized', 'Send an access token as Authorization: Bearer <token>.');
          }
          return people?.isToken(token) ? people.authenticate(token) : authenticator.authenticate(token);
        },
        (error) => {
          if (!(error instanceof Problem) || error.status !== 401) throw error;
          app.endpointLimits.countRefusal(request, reply);
          if (!takesClientSecret(rule) || !isBasic(request.headers.authorization)) throw error;
          // RFC 6749 section 5.2: the challenge is of the scheme that the client has used.
          throw new Problem(error.code, error.detail, { headers: { 'www-authenticate': 'Basic realm="latchkey"' } });
        },
      );
    }

    /** A gateway with a wrong token is a mistake of its operator, not of its client: 503, and a line in the log. */
    function identifyGateway(request: FastifyRequest, reply: FastifyReply): MaybePromise<Principal> {
      const token = request.headers[gatewayHeader];
      const refuse = (cause: unknown) => {
        // Anybody can send such a request, and each answer is an error in the log.
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

    /** The organization in which a request acts: the caller's own, or the one that it names. */
    function organizationFor(
      { headers }: FastifyRequest,
      rule: ProtectedRule,
      principal: CallerPrincipal,
    ): MaybePromise<OrganizationId | null> {
      const named = headers['latchkey-organization'];
      if (named === undefined) return ownOrganization(rule, principal);
      // A caller's own organization exists; to look it up would make every verification wait for the database.
      if (named === principal.organizationId) return principal.organizationId;
      return foreignOrganization(principal, named);
    }

    async function foreignOrganization(principal: CallerPrincipal, named: string | string[]): Promise<OrganizationId> {
      if (principal.organizationId === null && typeof named === 'string' && isId('org', named)) {
        if (await organizationExists(named)) return named;
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
