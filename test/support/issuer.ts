import { once } from 'node:events';
import { createServer, type Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { type CryptoKey, exportJWK, generateKeyPair, type JWK, type JWTPayload, SignJWT } from 'jose';
import Provider, { type Configuration, type ResourceServer, type TokenEndpointGrantContext } from 'oidc-provider';
import type { Test } from 'tap';
import { createIssuerKeys, type IssuerKeysOptions } from '../../src/oidc/issuer-keys.ts';
import type { OidcSettings } from '../../src/oidc/settings.ts';

// An identity provider in the test's process, which logs people in over HTTP. Tokens that no provider would issue are
// signed with its key.

export const audience = 'https://latchkey.example';

/** The claims in the tokens of a person, without the subject. */
export type PersonClaims = Record<string, unknown>;

export interface Issuer {
  url: string;
  people: Map<string, PersonClaims>;
  /** Logs a person in. */
  tokensOf(subject: string): Promise<{ accessToken: string; idToken: string }>;
  /** The current signing key. */
  signingKey(): { key: CryptoKey; publicJwk: JWK; kid: string };
  /** Signs any claims with the current key. */
  sign(payload: JWTPayload, header?: Record<string, unknown>): Promise<string>;
  /** Changes to another key, and publishes only that one. */
  rotate(): Promise<void>;
  /** How often the keys were fetched. */
  keyFetches(): number;
  goDown(): Promise<void>;
  comeBack(): Promise<void>;
}

const client = { client_id: 'dashboard', client_secret: 'a secret of the dashboard' };

export async function startIssuer(t: Test): Promise<Issuer> {
  let provider: Provider;
  let signing: { key: CryptoKey; publicJwk: JWK; kid: string };
  let fetches = 0;
  let keys = 0;
  const people = new Map<string, PersonClaims>();
  const server: Server = createServer((request, response) => {
    if (request.url === '/jwks') fetches += 1;
    void provider.callback()(request, response);
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address() as AddressInfo;
  const url = `http://127.0.0.1:${port}`;

  async function rotate(): Promise<void> {
    const { privateKey, publicKey } = await generateKeyPair('RS256', { extractable: true });
    keys += 1;
    const kid = `key-${keys}`;
    signing = { key: privateKey, publicJwk: await exportJWK(publicKey), kid };
    provider = providerOf(url, people, { ...(await exportJWK(privateKey)), kid, use: 'sig', alg: 'RS256' });
  }
  async function goDown(): Promise<void> {
    server.closeAllConnections();
    server.close();
    await once(server, 'close');
  }
  await rotate();
  t.teardown(async () => {
    if (server.listening) await goDown();
  });
  return {
    url,
    people,
    rotate,
    goDown,
    async comeBack() {
      server.listen(port, '127.0.0.1');
      await once(server, 'listening');
    },
    keyFetches: () => fetches,
    signingKey: () => signing,
    sign: (payload, header = {}) =>
      new SignJWT(payload)
        .setProtectedHeader({ alg: 'RS256', typ: 'at+jwt', kid: signing.kid, ...header })
        .sign(signing.key),
    async tokensOf(subject) {
      const response = await fetch(`${url}/token`, {
        method: 'POST',
        body: new URLSearchParams({ ...client, grant_type: 'password', username: subject }),
      });
      const body = (await response.json()) as { access_token: string; id_token: string };
      if (!response.ok) throw new Error(JSON.stringify(body));
      return { accessToken: body.access_token, idToken: body.id_token };
    },
  };
}

const resourceServer: ResourceServer = {
  scope: 'keys',
  audience,
  accessTokenFormat: 'jwt',
  accessTokenTTL: 600,
  jwt: { sign: { alg: 'RS256' } },
};

function providerOf(url: string, people: Map<string, PersonClaims>, jwk: JWK): Provider {
  const provider = new Provider(url, {
    jwks: { keys: [jwk] } as NonNullable<Configuration['jwks']>,
    clients: [
      {
        ...client,
        token_endpoint_auth_method: 'client_secret_post',
        grant_types: ['password'],
        redirect_uris: [],
        response_types: [],
      },
    ],
    findAccount: (_, accountId) => ({ accountId, claims: () => ({ sub: accountId, ...people.get(accountId) }) }),
    claims: { openid: ['sub', 'name', 'email', 'roles', 'organization'] },
    features: {
      devInteractions: { enabled: false },
      resourceIndicators: { enabled: true, getResourceServerInfo: () => resourceServer },
    },
    formats: {
      customizers: {
        jwt(_, token, { payload }) {
          const { accountId = '' } = token as { accountId?: string };
          Object.assign(payload, { nbf: payload['iat'], ...people.get(accountId) });
        },
      },
    },
  });
  provider.registerGrantType('password', (context) => logIn(provider, context, people), ['username']);
  return provider;
}

/** Any user name is logged in as that person, because the login itself is not tested. */
async function logIn(
  provider: Provider,
  ctx: TokenEndpointGrantContext,
  people: Map<string, PersonClaims>,
): Promise<void> {
  const { client: by } = ctx.oidc;
  const accountId = String((ctx.oidc.params as { username?: string }).username);
  const access = new provider.AccessToken({ client: by, accountId, scope: 'keys', gty: 'password' } as never);
  access.resourceServer = new provider.ResourceServer(audience, resourceServer);
  const accessToken = await access.save();
  const id = new provider.IdToken({ sub: accountId, ...people.get(accountId) }, { ctx });
  Object.assign(id, { scope: 'openid' }).set('at_hash', accessToken);
  ctx.body = { access_token: accessToken, id_token: await id.issue({ use: 'idtoken' }), token_type: 'Bearer' };
}

/** The settings of a service for this issuer, with short times for tests. */
export function oidcOf(
  issuer: Issuer,
  organization: OidcSettings['organization'],
  {
    settings = {},
    timings = {},
    logger = { warn: () => undefined, info: () => undefined },
  }: {
    settings?: Partial<OidcSettings>;
    timings?: NonNullable<IssuerKeysOptions['timings']>;
    logger?: IssuerKeysOptions['logger'];
  } = {},
) {
  return {
    settings: {
      issuer: issuer.url,
      audience,
      audienceClaim: 'aud',
      organization,
      rolesClaim: 'roles',
      rolesOf: { read: ['latchkey-read'], write: ['latchkey-write'], reveal: ['latchkey-reveal'] },
      nameClaim: 'name',
      emailClaim: 'email',
      acceptsUntypedTokens: false,
      requiresNbf: false,
      maxLifetimeSeconds: 7_200,
      ...settings,
    },
    // A reply that is late on a busy machine must not count as a silent issuer.
    keys: createIssuerKeys({ issuer: issuer.url, logger, timings: { timeoutMs: 20_000, ...timings } }),
  };
}
