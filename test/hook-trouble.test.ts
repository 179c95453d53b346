import fastify from 'fastify';
import type { Test } from 'tap';
import { createLatchkeyClient } from '../clients/node/src/client.ts';
import { type LatchkeyOptions, latchkey } from '../clients/node/src/fastify.ts';
import { startListening } from './support/hook.ts';
import { listenHttp } from './support/listeners.ts';
import { freePort } from './support/ports.ts';
import { eventually } from './support/process.ts';
import { t } from './support/tap.ts';

interface Line {
  level: number;
  msg: string;
}

async function startLogging(t: Test, options: LatchkeyOptions) {
  const lines: Line[] = [];
  const stream = { write: (text: string) => void lines.push(JSON.parse(text)) };
  const app = fastify({ logger: { stream }, disableRequestLogging: true, forceCloseConnections: true });
  t.teardown(() => app.close());
  await app.register(latchkey, options);
  app.get('/', async () => ({}));
  await app.ready();
  return { app, lines, warnings: () => lines.filter(({ level }) => level >= 40) };
}

t.test('a wrong url or token is logged at once, and not again for each request', async (t) => {
  const { url, admin, verifier } = await startListening(t);
  const input = { role: 'verifier', name: 'Old', scopes: ['read'] };
  const { body: old } = await admin.post('/v1/access-tokens', input);
  await admin.delete(`/v1/access-tokens/${old.id}`);
  const { body: key } = await admin.post('/v1/keys', {});
  const website = await listenHttp(t, (response) => response.end('<h1>It works!</h1>'));
  const { token } = verifier;
  const unusedUrl = `http://127.0.0.1:${await freePort()}`;
  const table: Array<[what: string, options: LatchkeyOptions, said: RegExp]> = [
    ['a revoked token', { url, token: old.token }, /Latchkey answered 401 Unauthorized: .* token must be a verifier's/],
    ["an admin's token", { url, token: admin.token }, /Latchkey answered 403 Forbidden: .* token must be a verifier's/],
    ['a token of another kind', { url, token: 'secret' }, /Latchkey answered 401 .*: .* token must be a verifier's/],
    ['another path', { url: `${url}/keys`, token }, /Latchkey answered 404 Not found: /],
    [
      'another server',
      { url: `http://127.0.0.1:${website.port}`, token },
      /The reply.* is not from.*Latchkey. Check url\./,
    ],
    ['no server', { url: unusedUrl, token }, /Latchkey did not answer: .*ECONNREFUSED/],
  ];
  for (const [what, options, said] of table) {
    const { app, warnings } = await startLogging(t, options);
    await eventually(async () => warnings().length > 0, 5_000);
    t.match(warnings()[0], { level: 50, msg: said }, what);
    t.match(warnings()[0]?.msg, `with Latchkey at ${options.url}: `, what);
    for (let request = 0; request < 20; request += 1) {
      const reply = await app.inject({ url: '/', headers: { 'x-api-key': key.key } });
      t.equal(reply.statusCode, 503);
      t.notMatch(reply.body, /401|ECONNREFUSED|token must/, 'clients do not see the cause');
    }
    const messages = warnings().map(({ msg }) => msg);
    t.same(messages, [...new Set(messages)], `${what}: no line is repeated`);
    t.ok(messages.length <= 2, `${what}: ${messages.join('\n')}`);
    t.notMatch(JSON.stringify(warnings()), /"err"|stack|node_modules/, `${what}: no stacks`);
  }
});

t.test('without problems no warning is logged, and the client without Fastify reports the same problems', async (t) => {
  const { url, verifier } = await startListening(t);
  const { lines, warnings } = await startLogging(t, { url, token: verifier.token });
  await eventually(async () => lines.some(({ msg }) => msg === 'API keys are verified from memory.'));
  t.same(warnings(), []);
  const reported: string[] = [];
  const client = createLatchkeyClient({
    url,
    token: 'secret',
    onEvent: (event) => void (event.type === 'trouble' && reported.push(event.reason)),
  });
  t.teardown(() => client.close());
  await eventually(async () => reported.length > 0, 5_000);
  t.match(reported, [/Latchkey answered 401/]);
});
