import { once } from 'node:events';
import { existsSync } from 'node:fs';
import { chmod, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { type AddressInfo, connect } from 'node:net';
import { tmpdir, userInfo } from 'node:os';
import path from 'node:path';
import { createServer } from 'node:tls';
import type { Test } from 'tap';
import { startService, type TestService } from './support/app.ts';
import { createCertificateAuthority } from './support/certificates.ts';
import { freePort } from './support/ports.ts';
import { eventually, run } from './support/process.ts';
import { t } from './support/tap.ts';

// Token introspection by Debian's Apache modules.

const modules = '/usr/lib/apache2/modules';

type StatusOf = Awaited<ReturnType<typeof startApache>>;

interface Settings {
  endpoint: string;
  secret: string;
  /** One of client_secret_basic and client_secret_post. */
  method: string;
}

/** The snippet of docs/gateways.md. */
const [, documented = ''] = /```apache\n(.*?)```/s.exec(await readFile('docs/gateways.md', 'utf8')) ?? [];

const protections: Record<string, (settings: Settings) => string[]> = {
  auth_openidc: ({ endpoint, method }) => [
    'OIDCOAuthSSLValidateServer Off',
    documented.replace('https://latchkey.example.com/v1/introspect', endpoint).replace('client_secret_basic', method),
  ],
  oauth2: ({ endpoint, secret, method }) => [
    `OAuth2TokenVerify introspect ${endpoint} introspect.ssl_verify=false&introspect.auth=${method}&client_id=rs&client_secret=${secret}`,
    '<Location />',
    'AuthType oauth2',
    'Require valid-user',
    '</Location>',
  ],
};

for (const [name, protection] of Object.entries(protections)) {
  const file = `${modules}/mod_${name}.so`;
  for (const method of ['client_secret_basic', 'client_secret_post']) {
    const skip = !existsSync(file) && `mod_${name} is not installed`;
    t.test(`Apache with mod_${name} and ${method} accepts only valid keys`, { skip }, async (t) => {
      const service = await startService(t);
      const url = await service.app.listen({ port: 0, host: '127.0.0.1' });
      const { body: key } = await service.admin.post('/v1/keys', {});
      const { body: deleted } = await service.admin.post('/v1/keys', {});
      await service.admin.delete(`/v1/keys/${deleted.id}`);
      const endpoint = `${await throughTls(t, Number(new URL(url).port))}/v1/introspect`;
      const settings = { endpoint, secret: service.verifier.token, method };
      const statusOf = await startApache(t, name, { protection: protection(settings), token: settings.secret });
      t.equal(await statusOf(key.key), 200);
      t.equal(await statusOf(deleted.key), 401);
      t.equal(await statusOf('nonsense'), 401);
      t.equal(await statusOf(undefined), 401);
      if (name === 'auth_openidc') await readsOnly(t, service, statusOf);
    });
  }
}

async function readsOnly(t: Test, { admin }: TestService, statusOf: StatusOf): Promise<void> {
  const { body } = await admin.post('/v1/partners', { email: 'r@partner.example', permissions: ['read'] });
  const { key } = body.keys[0];
  t.equal(await statusOf(key), 200);
  t.not(await statusOf(key, 'POST'), 200, 'a key that may read cannot write');
}

/** mod_auth_openidc calls https only. */
async function throughTls(t: Test, port: number): Promise<string> {
  const server = createServer(createCertificateAuthority().issue(['127.0.0.1']), (socket) => {
    const upstream = connect(port, '127.0.0.1');
    socket.on('error', () => upstream.destroy());
    upstream.on('error', () => socket.destroy());
    socket.pipe(upstream).pipe(socket);
  }).listen(0, '127.0.0.1');
  t.teardown(() => void server.close());
  await once(server, 'listening');
  return `https://127.0.0.1:${(server.address() as AddressInfo).port}`;
}

/** Apache in the foreground with all files in a folder. @returns a function that returns the status for a key */
async function startApache(t: Test, module: string, { protection, token }: { protection: string[]; token: string }) {
  const [directory, port] = [await mkdtemp(path.join(tmpdir(), 'latchkey-apache-')), await freePort()];
  t.teardown(() => rm(directory, { recursive: true, force: true, maxRetries: 10 }));
  const loaded = ['mpm_event', 'authn_core', 'authz_core', 'authz_user', module];
  const { username } = userInfo();
  const configuration = [
    `ServerRoot ${directory}`,
    'ServerName localhost',
    `Listen 127.0.0.1:${port}`,
    `PidFile ${directory}/pid`,
    `DefaultRuntimeDir ${directory}`,
    `ErrorLog ${path.join(directory, 'error.log')}`,
    'LogLevel debug',
    `DocumentRoot ${directory}`,
    ...loaded.map((name) => `LoadModule ${name}_module ${modules}/mod_${name}.so`),
    ...(username === 'root' ? ['User www-data', 'Group www-data'] : []),
    ...protection,
  ];
  await writeFile(path.join(directory, 'apache.conf'), `${configuration.join('\n')}\n`);
  await writeFile(path.join(directory, 'index'), 'protected');
  await chmod(directory, 0o755);
  const process = run(t, 'apache2', ['-f', path.join(directory, 'apache.conf'), '-DFOREGROUND'], {
    env: { LATCHKEY_TOKEN: token, OIDC_PASSPHRASE: 'something-random' },
  });
  const statusOf = async (key: string | undefined, method = 'GET') => {
    const headers: Record<string, string> = key === undefined ? {} : { authorization: `Bearer ${key}` };
    const response = await fetch(`http://127.0.0.1:${port}/index`, { method, headers });
    await response.arrayBuffer();
    return response.status;
  };
  await eventually(async () => {
    if (process.child.exitCode !== null) throw new Error(`Apache has ended:\n${process.output()}`);
    return await statusOf(undefined).catch(() => undefined);
  });
  t.teardown(async () => t.passing() || t.comment(await readFile(path.join(directory, 'error.log'), 'utf8')));
  return statusOf;
}
