import { decodeJwt, errors, type JWTHeaderParameters, type JWTPayload, jwtVerify } from 'jose';
import { unauthorized } from '../credentials/presented.ts';
import { createSecretText } from '../crypto/secret-text.ts';
import type { DatabaseClock } from '../database/clock.ts';
import type { Problem } from '../domain/errors.ts';
import type { OrganizationId } from '../domain/ids.ts';
import type { OidcPrincipal } from '../domain/principal.ts';
import { claimOf, type Identity, identityOf } from './claims.ts';
import type { IssuerKeys } from './issuer-keys.ts';
import type { OidcSettings } from './settings.ts';

/** Authenticates admins by access tokens of the company's identity provider. */
export interface OidcAuthenticator {
  /** Whether a credential has the form of a JWT, which Latchkey's own tokens do not have. */
  isToken(text: string): boolean;
  /** @throws Problem `unauthorized`, `token_malformed`, `token_expired`, `unavailable` */
  authenticate(token: string): Promise<OidcPrincipal>;
}

interface OidcAuthenticatorOptions {
  settings: OidcSettings;
  keys: IssuerKeys;
  clock: DatabaseClock;
  /** The prefix of every token of this installation. */
  tokenPrefix: string;
  organizationExists: (id: OrganizationId) => Promise<boolean>;
}

/** Only asymmetric algorithms: with HS256, the public key would be enough to sign. */
const algorithms = [
  'RS256',
  'RS384',
  'RS512',
  'PS256',
  'PS384',
  'PS512',
  'ES256',
  'ES384',
  'ES512',
  'EdDSA',
  'Ed25519',
];

const clockToleranceSeconds = 10;

const longestToken = 8_192;

export function createOidcAuthenticator({
  settings,
  keys,
  clock,
  tokenPrefix,
  organizationExists,
}: OidcAuthenticatorOptions): OidcAuthenticator {
  const secrets = createSecretText(tokenPrefix);

  async function authenticate(token: string): Promise<OidcPrincipal> {
    if (token.length > longestToken) throw refused(`The token is longer than ${longestToken} characters.`);
    const { header, payload } = await verify(token);
    requireAccessToken(header, payload, settings);
    const identity = identityOf(payload, settings, secrets);
    if (typeof identity === 'string') throw refused(identity);
    if (!(await organizationExists(identity.organizationId)))
      throw refused('The token names an organization that does not exist.');
    return principalOf(identity, payload, settings.issuer);
  }

  async function verify(token: string): Promise<{ header: JWTHeaderParameters; payload: JWTPayload }> {
    const nowSeconds = Math.floor(clock.nowMs() / 1_000);
    try {
      // Checked before the keys, so that tokens of other issuers cause no fetch.
      if (decodeJwt(token).iss !== settings.issuer) throw refused(reasons.iss);
      const { protectedHeader, payload } = await jwtVerify(token, keys.find, {
        issuer: settings.issuer,
        ...(settings.audienceClaim === 'aud' ? { audience: settings.audience } : {}),
        algorithms,
        clockTolerance: clockToleranceSeconds,
        requiredClaims: ['exp', 'iat', 'sub', ...(settings.requiresNbf ? ['nbf'] : [])],
        currentDate: new Date(nowSeconds * 1_000),
      });
      if (![claimOf(payload, settings.audienceClaim)].flat().includes(settings.audience)) throw refused(reasons.aud);
      requireTimes(payload, nowSeconds, settings.maxLifetimeSeconds);
      return { header: protectedHeader, payload };
    } catch (error) {
      throw error instanceof errors.JOSEError ? problemOf(error) : error;
    }
  }

  return { isToken: (text) => /^[\w-]+\.[\w-]+\.[\w-]*$/.test(text), authenticate };
}

/** Checks that jose does not make: it accepts tokens from the future and tokens with a long lifetime. */
function requireTimes({ iat, exp = 0 }: JWTPayload, nowSeconds: number, maxLifetimeSeconds: number): void {
  if (typeof iat !== 'number') throw refused('A claim of the token has a wrong form.');
  if (iat > nowSeconds + clockToleranceSeconds) throw refused(reasons.iat);
  if (exp > nowSeconds + maxLifetimeSeconds + clockToleranceSeconds) {
    throw refused(`The token ends more than ${maxLifetimeSeconds} seconds from now (OIDC_MAX_LIFETIME_SECONDS).`);
  }
}

/** Claims of ID tokens, refresh tokens and logout tokens that access tokens do not have. */
const claimsOfOtherTokens = ['nonce', 'at_hash', 'c_hash', 's_hash', 'events'];

/** Keycloak's values of the claim `typ`. */
const typesOfOtherTokens = ['ID', 'Refresh', 'Offline', 'Logout'];

/**
 * An ID token informs a client who logged in; it is not a credential, because anybody who receives it could use it. RFC
 * 9068 section 4 requires `typ: at+jwt`. If that may be missing, a token must have a scope, which no ID token has.
 */
function requireAccessToken({ typ }: JWTHeaderParameters, payload: JWTPayload, settings: OidcSettings): void {
  const isTyped = /^(application\/)?at\+jwt$/i.test(typ ?? '');
  const isForeign =
    claimsOfOtherTokens.some((name) => payload[name] !== undefined) ||
    typesOfOtherTokens.some((type) => payload['typ'] === type);
  const hasScope = payload['scope'] !== undefined || payload['scp'] !== undefined;
  const isUntyped = settings.acceptsUntypedTokens && /^(JWT)?$/i.test(typ ?? '') && hasScope;
  if (isForeign || !(isTyped || isUntyped)) {
    throw refused('The token is not an access token: its type is not at+jwt, or it looks like an ID token.');
  }
}

function principalOf(identity: Identity, { exp = 0 }: JWTPayload, issuer: string): OidcPrincipal {
  const { subject, organizationId, name, email, scopes } = identity;
  return {
    kind: 'oidc',
    role: 'admin',
    // An issuer has no fragment (OpenID Connect Core 1.0, section 2), so two pairs never give the same text.
    id: `${issuer}#${subject}`,
    issuer,
    subject,
    organizationId,
    name,
    email,
    scopes,
    expiresAt: new Date(exp * 1_000),
    actsIn: organizationId,
  };
}

function refused(detail: string): Problem {
  return unauthorized('unauthorized', detail, 'invalid_token');
}

const reasons: Record<string, string> & Record<'iss' | 'aud' | 'iat', string> = {
  iss: 'The token is of another issuer.',
  aud: 'The token is for another audience.',
  nbf: 'The token is not valid yet.',
  iat: 'The token was issued in the future.',
};

function problemOf(error: errors.JOSEError): Problem {
  if (error instanceof errors.JWTExpired)
    return unauthorized('token_expired', 'The token has expired.', 'invalid_token');
  if (error instanceof errors.JWTClaimValidationFailed) {
    if (error.reason === 'missing') return refused(`The token has no ${error.claim}.`);
    const isOfForm = error.reason === 'check_failed';
    return refused((isOfForm && reasons[error.claim]) || 'A claim of the token has a wrong form.');
  }
  if (error instanceof errors.JOSEAlgNotAllowed)
    return refused('The token is signed with an algorithm that is not accepted.');
  if (error instanceof errors.JWKSNoMatchingKey)
    return refused('The token is signed with a key that its issuer does not publish.');
  if (error instanceof errors.JWKSMultipleMatchingKeys)
    return refused('The token does not name the key with which it is signed.');
  if (error instanceof errors.JWSSignatureVerificationFailed) return refused('The signature of the token is wrong.');
  return unauthorized('token_malformed', 'The credential is not a well-formed token.', 'invalid_token');
}
