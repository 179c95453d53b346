import { readFile } from 'node:fs/promises';
import { generateKeyPair, type JWTHeaderParameters, type JWTPayload, SignJWT } from 'jose';
import { readConfig } from '../src/config/config.ts';
import { createDatabaseClock } from '../src/database/clock.ts';
import { createOidcAuthenticator } from '../src/oidc/authenticator.ts';
import { t } from './support/tap.ts';

// With the settings of docs/oidc.md, the token of each example must be accepted as the page says.

interface Example {
  name: string;
  env: NodeJS.ProcessEnv;
  header: JWTHeaderParameters;
  payload: JWTPayload;
  scopes: string[];
  organizationId: string | undefined;
}

async function readExamples(): Promise<Example[]> {
  const page = await readFile('docs/oidc.md', 'utf8');
  const pattern =
    /^## ([^\n]+)\n(?:(?!^## )[\s\S])*?```sh\n([\s\S]*?)```\n\n```json\n([\s\S]*?)```\n\nThis person may ([^\n]+)/gm;
  return [...page.matchAll(pattern)].map(([, name = '', settings = '', token = '', may = '']) => {
    const env = Object.fromEntries(
      settings
        .trim()
        .split('\n')
        .map((line) => line.replaceAll("'", '').split(/=(.*)/s).slice(0, 2)),
    );
    const scopes = ['read', 'write', 'reveal'].filter((scope) => new RegExp(`\\b${scope}\\b`).test(may));
    return { name, env, ...JSON.parse(token), scopes, organizationId: /org_\w+/.exec(may)?.[0] };
  });
}

/** Signs with the key of a provider, and configures Latchkey for this provider. */
async function startIssuing() {
  const { publicKey, privateKey } = await generateKeyPair('RS256');
  return {
    async authenticate(settingsEnv: NodeJS.ProcessEnv, header: JWTHeaderParameters, payload: JWTPayload) {
      const settings = readConfig(settingsEnv).oidc;
      if (settings === undefined) throw new Error('no identity provider is set');
      const people = createOidcAuthenticator({
        settings,
        keys: { find: async () => publicKey },
        clock: createDatabaseClock(),
        tokenPrefix: 'lk',
        organizationExists: async () => true,
      });
      const { iat = 0, exp = 0, nbf } = payload;
      const now = Math.floor(Date.now() / 1_000);
      const times = { iat: now, exp: now + exp - iat, ...(nbf === undefined ? {} : { nbf: now }) };
      const token = await new SignJWT({ ...payload, ...times }).setProtectedHeader(header).sign(privateKey);
      if (!people.isToken(token)) throw new Error('the text does not look like a token');
      return people.authenticate(token);
    },
  };
}

/** Settings that every provider needs. */
const common = /^OIDC_(ISSUER|AUDIENCE|ORGANIZATION|(READ|WRITE|REVEAL)_ROLES)$/;

t.test('the table of providers equals the examples', async (t) => {
  const rows = (await readExamples()).map(({ name, env, header, payload }) => {
    const minutes = Math.round(((payload.exp ?? 0) - (payload.iat ?? 0)) / 60);
    const settings = Object.entries(env).filter(([setting]) => !common.test(setting));
    const cells = [
      `[${name}](#${name.toLowerCase().replaceAll(' ', '-')})`,
      header['typ'] === undefined ? 'none' : `\`${header['typ']}\``,
      payload.aud === undefined ? 'none' : [payload.aud].flat().length === 1 ? 'one' : 'a list',
      payload.nbf === undefined ? 'no' : 'yes',
      `${minutes} min`,
      settings.map(([setting, value]) => `\`${setting}=${value}\``).join(' '),
    ];
    return `| ${cells.join(' | ')} |`;
  });
  const head = ['| provider | `typ` | `aud` | `nbf` | life | settings |', '| --- | --- | --- | --- | --- | --- |'];
  t.match(await readFile('docs/oidc.md', 'utf8'), [...head, ...rows].join('\n'));
});

t.test("Google's tokens are rejected", async (t) => {
  const { authenticate } = await startIssuing();
  const env = {
    OIDC_ISSUER: 'https://accounts.google.com',
    OIDC_AUDIENCE: '407408718192.apps.googleusercontent.com',
    OIDC_ORGANIZATION: 'org_01k9s3v5wqe8n8x4r2m6t7yb0c',
    OIDC_ROLES_CLAIM: 'hd',
    OIDC_READ_ROLES: 'example.com',
    OIDC_UNTYPED_TOKENS: 'true',
  };
  const idToken = {
    iss: env.OIDC_ISSUER,
    azp: env.OIDC_AUDIENCE,
    aud: env.OIDC_AUDIENCE,
    sub: '110169484474386276334',
    hd: 'example.com',
    email: 'ada@example.com',
    email_verified: true,
    at_hash: 'HK6E_P6Dh8Y93mRNtsDB1Q',
    iat: 1_795_500_000,
    exp: 1_795_503_600,
  };
  const header = { alg: 'RS256', typ: 'JWT', kid: 'k1' };
  await t.rejects(authenticate(env, header, idToken), { code: 'unauthorized' });
});

t.test('each example accepts its token, and needs each of its settings', async (t) => {
  const examples = await readExamples();
  t.same(
    examples.map(({ name }) => name),
    ['Keycloak', 'Microsoft Entra ID', 'Auth0', 'Okta', 'Amazon Cognito'],
  );
  const { authenticate: authenticateBy } = await startIssuing();
  for (const { name, env, header, payload, scopes, organizationId } of examples) {
    const authenticate = (settingsEnv: NodeJS.ProcessEnv) => authenticateBy(settingsEnv, header, payload);
    const person = await authenticate(env);
    t.match(person, { role: 'admin', name: 'Ada Admin', email: 'ada@example.com', scopes, organizationId }, name);
    t.equal(person.id, `${payload.iss}#${payload.sub}`);
    // A person without a scope does not show which role gives it.
    const scopeOf = (setting: string) => /^OIDC_(WRITE|REVEAL)_ROLES$/.exec(setting)?.[1]?.toLowerCase();
    const shown = Object.keys(env).filter((setting) => scopes.includes(scopeOf(setting) ?? 'read'));
    for (const setting of shown) {
      const { [setting]: _, ...others } = env;
      const without = await authenticate(others).catch((error: unknown) => error);
      t.notSame(without, person, `${name} needs ${setting}`);
    }
  }
});
