import { mkdtemp, readFile, rm, symlink, writeFile } from 'node:fs/promises';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { pathToFileURL } from 'node:url';
import type { Test } from 'tap';
import { tsImport } from 'tsx/esm/api';
import type { Secret } from '../src/crypto/secret.ts';
import { deliveryFailures } from '../src/webhooks/delivery-failed.ts';
import { deliveryFlaws } from '../src/webhooks/policy.ts';
import { generateWebhookSecret, signDelivery } from '../src/webhooks/signature.ts';
import { type Json, startService } from './support/app.ts';
import { freePort } from './support/ports.ts';
import { eventually, type RunningProcess, run, runScript, untilListening } from './support/process.ts';
import { unlessInstalled } from './support/programs.ts';
import { t } from './support/tap.ts';
import { startWebhookClient } from './support/webhook-client.ts';
import { makeWebhook, type Received, startReceiver, startSending } from './support/webhooks.ts';

// Runs the snippets of docs/webhooks.md. They accept what Latchkey sends, and nothing else.

const page = await readFile('docs/webhooks.md', 'utf8');

/** The fenced blocks with a file name in their first line. */
const snippets = new Map(
  [...page.matchAll(/^```\w+\n(?:#|\/\/) (\S+)\n(.*?)^```$/gms)].map(([, name = '', text = '']) => [name, text]),
);

t.test('the page has these snippets, and each of them is run here', async (t) => {
  const names = ['create.sh', 'test.sh', 'receiver.mts', 'verify.mts', 'receiver.py', 'verify.sh', 'send.sh'];
  t.same([...snippets.keys()], names);
  t.equal(page.match(/^```\w+$/gm)?.length, names.length + 1, 'plus one example of a body');
});

/** A folder with a snippet as a file, and this project's packages. */
async function fileOf(t: Test, name: string, replacing: Record<string, string> = {}): Promise<string> {
  const directory = await mkdtemp(path.join(tmpdir(), 'latchkey-webhook-'));
  t.teardown(() => rm(directory, { recursive: true, force: true }));
  await symlink(path.resolve('node_modules'), path.join(directory, 'node_modules'));
  const text = Object.entries(replacing).reduce((text, [place, localAddresses]) => {
    if (!text.includes(place)) throw new Error(`${name} should have «${place}»`);
    return text.replace(place, localAddresses);
  }, snippets.get(name) ?? '');
  const file = path.join(directory, name);
  await writeFile(file, text);
  return file;
}

async function runShell(t: Test, file: string, env: NodeJS.ProcessEnv) {
  const shell = run(t, 'sh', ['-u', file], { cwd: path.dirname(file), env });
  const { code } = await shell.exited;
  return { code, output: shell.output() };
}

async function untilReady(port: number, process: RunningProcess): Promise<RunningProcess> {
  await untilListening(port, process);
  return process;
}

type StartReceiver = (t: Test, port: number, secret: string) => Promise<RunningProcess>;

const startTypeScript: StartReceiver = async (t, port, secret) => {
  const env = { WEBHOOK_SECRET: secret, PORT: String(port) };
  return untilReady(port, runScript(t, await fileOf(t, 'receiver.mts'), [], { env }));
};

const startPython: StartReceiver = async (t, port, secret) => {
  const env = { WEBHOOK_SECRET: secret, PORT: String(port) };
  return untilReady(port, run(t, 'python3', [await fileOf(t, 'receiver.py')], { env }));
};

t.test('the steps of the page lead from a new webhook to a receiver', { skip: unlessInstalled('curl') }, async (t) => {
  const service = await startService(t);
  await service.app.listen({ port: 0, host: '127.0.0.1' });
  startSending(t, service);
  const port = await freePort();
  const localAddresses = { '127.0.0.1:8080': `127.0.0.1:${(service.app.server.address() as AddressInfo).port}` };
  const env = { ADMIN_TOKEN: service.admin.token };
  const receiverUrl = `http://127.0.0.1:${port}/latchkey`;
  const createFile = await fileOf(t, 'create.sh', {
    ...localAddresses,
    'https://hooks.example.com/latchkey': receiverUrl,
  });
  const { id, secret, events } = JSON.parse((await runShell(t, createFile, env)).output);
  t.same(events, ['key.created', 'key.deleted', 'key.expiry_announced']);
  const receiver = await startTypeScript(t, port, secret);
  await runShell(t, await fileOf(t, 'test.sh', localAddresses), { ...env, WEBHOOK_ID: id });
  await receiver.until(/^webhook\.tested \d+$/m);
  await service.admin.post('/v1/keys', {});
  await receiver.until(/^key\.created \d+$/m);
});

t.test('the documented form of a delivery is that of a real one', async (t) => {
  const service = await startService(t);
  startSending(t, service);
  const receiver = await startReceiver(t);
  const { secret } = await makeWebhook(service, { url: receiver.url, events: ['key.created'] });
  const partner = await service.admin.post('/v1/partners', { email: 'ada@example.com', permissions: ['read'] });
  await service.admin.post('/v1/keys', { partnerId: partner.body.id, permission: 'read' });
  const [call] = await eventually(async () => receiver.received.length > 0 && receiver.received);
  if (call === undefined) throw new Error('nothing arrived');

  await t.test('the body has the members of the example', async (t) => {
    const [, text = ''] = /^```json\n(.*?)^```$/ms.exec(page) ?? [];
    const example = JSON.parse(text);
    const membersOf = ({ data, ...body }: Json) =>
      [body, data, data.actor, data.details].map((part) => Object.keys(part));
    t.same(membersOf(example), membersOf(call.json));
    t.equal(call.json.type, example.type);
    t.match(call.headers['webhook-id'], /^delivery_/);
  });

  await t.test('verify.mts accepts a genuine delivery, and no changed one', async (t) => {
    const { isGenuine } = await tsImport(pathToFileURL(await fileOf(t, 'verify.mts')).href, import.meta.url);
    t.equal(isGenuine(secret, call.headers, call.body), true);
    for (const [what, headers, body] of changesOf(call)) t.equal(isGenuine(secret, headers, body), false, what);
    t.equal(isGenuine(generateWebhookSecret().reveal(), call.headers, call.body), false, 'another secret');
  });

  const skip = unlessInstalled('openssl');
  await t.test('verify.sh distinguishes a genuine delivery from a changed one', { skip }, async (t) => {
    const file = await fileOf(t, 'verify.sh');
    const verify = async (headers: Received['headers'], body: Buffer, known: string) => {
      await writeFile(path.join(path.dirname(file), 'body.json'), body);
      return runShell(t, file, {
        WEBHOOK_SECRET: known,
        WEBHOOK_ID: String(headers['webhook-id']),
        WEBHOOK_TIMESTAMP: String(headers['webhook-timestamp']),
        WEBHOOK_SIGNATURE: String(headers['webhook-signature']),
      });
    };
    t.match(await verify(call.headers, call.body, secret), { code: 0, output: /^signed at \d+, now it is \d+\n$/ });
    for (const [what, headers, body] of changesOf(call)) {
      t.match(await verify(headers, body, secret), { code: 1, output: 'not signed with this secret\n' }, what);
    }
    t.match(await verify(call.headers, call.body, generateWebhookSecret().reveal()), { code: 1 }, 'another secret');
  });
});

function changesOf({ headers, body }: Received): Array<[what: string, headers: Received['headers'], body: Buffer]> {
  const signature = String(headers['webhook-signature']);
  return [
    ['a byte more', headers, Buffer.concat([body, Buffer.from(' ')])],
    ['printed again', headers, Buffer.from(JSON.stringify(JSON.parse(body.toString()), null, 1))],
    ['another id', { ...headers, 'webhook-id': 'delivery_other' }, body],
    ['another time', { ...headers, 'webhook-timestamp': String(Number(headers['webhook-timestamp']) - 1) }, body],
    ['no time', { ...headers, 'webhook-timestamp': '' }, body],
    ['another version', { ...headers, 'webhook-signature': signature.replace('v1,', 'v2,') }, body],
    ['half a signature', { ...headers, 'webhook-signature': signature.slice(0, 30) }, body],
    ['no signature', { ...headers, 'webhook-signature': '' }, body],
  ];
}

t.test('verify.mts rejects old deliveries', async (t) => {
  const { isGenuine } = await tsImport(pathToFileURL(await fileOf(t, 'verify.mts')).href, import.meta.url);
  const secret = generateWebhookSecret();
  const isAcceptedAt = (timestampSeconds: number) =>
    isGenuine(secret.reveal(), signDelivery([secret], { id: 'a', timestampSeconds, body: '{}' }), Buffer.from('{}'));
  const now = Math.floor(Date.now() / 1000);
  t.same([now - 400, now - 200, now, now + 200, now + 400].map(isAcceptedAt), [false, true, true, true, false]);
});

for (const [name, start, program] of [
  ['receiver.mts', startTypeScript, 'node'],
  ['receiver.py', startPython, 'python3'],
] as const) {
  t.test(
    `${name} accepts each delivery once, and rejects everything else`,
    { skip: unlessInstalled(program) },
    async (t) => {
      const [secret, next, port] = [generateWebhookSecret(), generateWebhookSecret(), await freePort()];
      const receiver = await start(t, port, secret.reveal());
      const { post } = startWebhookClient(t, { opened: ['127.0.0.1'] });
      const now = Math.floor(Date.now() / 1000);
      const bodyOf = (sequence: number) =>
        `{"type":"key.created","data":{"sequence":${sequence},"name":"Zoë \u{1f511}"}}`;
      const send = async (
        secrets: Secret[],
        sequence: number,
        { id = `delivery_${sequence}`, at = now, more = '' } = {},
      ) => {
        const signed = signDelivery(secrets, { id, timestampSeconds: at, body: bodyOf(sequence) });
        return (await post(`http://127.0.0.1:${port}/`, { ...signed }, bodyOf(sequence) + more)).status;
      };
      t.equal(await send([secret], 1), 204, 'unchanged');
      t.equal(await send([secret], 1), 204, 'once more');
      t.equal(await send([next, secret], 2), 204, 'during a rotation');
      t.equal(await send([next], 3), 401, 'with another secret');
      t.equal(await send([secret], 4, { more: ' ' }), 401, 'with another body');
      t.equal(await send([secret], 5, { at: now - 400 }), 401, 'too old');
      t.equal(await send([secret], 6, { at: now + 400 }), 401, 'from the future');
      t.equal((await post(`http://127.0.0.1:${port}/`, {}, bodyOf(7))).status, 401, 'unsigned');
      t.equal(await send([secret], 8), 204, 'the receiver still works');
      await receiver.until(/^key\.created 8$/m);
      t.same(receiver.stdout().match(/^key\.created \d+$/gm), ['key.created 1', 'key.created 2', 'key.created 8']);
    },
  );
}

const forSending = unlessInstalled('openssl') || unlessInstalled('curl');
t.test('send.sh reaches a receiver with the same secret', { skip: forSending }, async (t) => {
  const [port, secret] = [await freePort(), generateWebhookSecret().reveal()];
  const receiver = await startTypeScript(t, port, secret);
  const file = await fileOf(t, 'send.sh');
  const env = { RECEIVER_URL: `http://127.0.0.1:${port}/`, WEBHOOK_SECRET: secret };
  t.match(await runShell(t, file, env), { code: 0, output: '204\n' });
  await receiver.until(/^key\.created 42$/m);
  const other = { ...env, WEBHOOK_SECRET: generateWebhookSecret().reveal() };
  t.match(await runShell(t, file, other), { code: 0, output: '401\n' });
});

t.test('the TypeScript of the page compiles with strict settings', async (t) => {
  for (const name of ['receiver.mts', 'verify.mts']) {
    const flags = ['--noEmit', '--strict', '--noUncheckedIndexedAccess', '--skipLibCheck', '--types', 'node'];
    const file = await fileOf(t, name);
    const tsc = path.resolve('node_modules/.bin/tsc');
    // Without the code that tap loads into each Node process.
    const compiler = run(t, tsc, [...flags, '--module', 'nodenext', file], {
      cwd: path.dirname(file),
    });
    t.same([(await compiler.exited).code, compiler.output()], [0, ''], name);
  }
});

t.test('the page lists every reason of a failed delivery', async (t) => {
  const named = [...page.matchAll(/^\| `([a-z_]+)` \|/gm)].map(([, reason]) => reason);
  t.same(named.sort(), [...Object.keys(deliveryFailures), 'secret_unreadable', ...Object.keys(deliveryFlaws)].sort());
});
