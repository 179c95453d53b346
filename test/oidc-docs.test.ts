import { readFile } from 'node:fs/promises';
import { generateKeyPair, type JWTHeaderParameters, type JWTPayload, SignJWT } from 'jose';
import t from 'tap';
import { createPeople } from '../src/auth/people.ts';
import { readConfig } from '../src/config.ts';
import { createDatabaseClock } from '../src/db/clock.ts';

// The examples of docs/oidc.md: with these settings a token like this one means what the page says.

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
        .map((line) => line.split(/=(.*)/s).slice(0, 2)),
    );
    const scopes = ['read', 'write'].filter((scope) => new RegExp(`\\b${scope}\\b`).test(may));
    return { name, env, ...JSON.parse(token), scopes, organizationId: /org_\w+/.exec(may)?.[0] };
  });
}

t.test('each example lets in whom it says it does, and needs each of its settings', async (t) => {
  const examples = await readExamples();
  t.same(
    examples.map(({ name }) => name),
    ['Keycloak', 'Microsoft Entra ID', 'Auth0'],
  );
  const { publicKey, privateKey } = await generateKeyPair('RS256');
  for (const { name, env, header, payload, scopes, organizationId } of examples) {
    const authenticate = async (given: NodeJS.ProcessEnv) => {
      const settings = readConfig(given).oidc;
      if (settings === undefined) throw new Error('no identity provider is set');
      const people = createPeople({
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
      t.ok(people.isToken(token));
      return people.authenticate(token);
    };
    const person = await authenticate(env);
    t.match(person, { role: 'admin', name: 'Ada Admin', email: 'ada@example.com', scopes, organizationId }, name);
    t.equal(person.id, `${payload.iss}#${payload.sub}`);
    // Somebody who may only read does not show what gives the scope write.
    const shown = Object.keys(env).filter((setting) => setting !== 'OIDC_WRITE_ROLES' || scopes.includes('write'));
    for (const setting of shown) {
      const { [setting]: _, ...others } = env;
      const without = await authenticate(others).catch((error: unknown) => error);
      t.notSame(without, person, `${name} needs ${setting}`);
    }
  }
});
