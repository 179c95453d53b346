import { spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { readFile, symlink, writeFile } from 'node:fs/promises';
import { connect } from 'node:net';
import path from 'node:path';
import { parse as parseYaml } from 'yaml';
import { mintToken, parseToken, type TokenKind } from '../src/crypto/token.ts';
import { idSuffix, newId } from '../src/domain/ids.ts';
import { generateWebhookSecret, signDelivery } from '../src/webhooks/signature.ts';
import { scratch } from './support/instance.ts';
import { listenHttp } from './support/listeners.ts';
import { freePort } from './support/ports.ts';
import { eventually, runScript } from './support/process.ts';
import { unlessInstalled } from './support/programs.ts';
import { t } from './support/tap.ts';

// What docs/leaks.md says about the form of tokens, its rules for scanners, and its receiver. Its commands run in
// commands.test.ts.

const page = await readFile('docs/leaks.md', 'utf8');
const blockOf = (language: string): string =>
  new RegExp(`^\`\`\`${language}\\n(.*?)^\`\`\`$`, 'ms').exec(page)?.[1]?.trim() ?? '';

const mint = (kind: TokenKind, prefix = 'lk') => mintToken({ prefix, kind, idSuffix: idSuffix(newId('key')) }).reveal();

const kinds: TokenKind[] = ['k', 'a', 'v', 'o'];
const tokens = kinds.flatMap((kind) => Array.from({ length: 20 }, () => mint(kind)));

/** Texts around a token in which it must be found. */
const contexts = [
  '%',
  'KEY=%',
  '"%"',
  "'%',",
  'https://host.example/?key=%&x=1',
  'Bearer %\r',
  'prefix_% ',
  '<a>%</a>',
];

const token = mint('k');

/** Texts that look like a token and are none. */
const nearMisses = [
  token.slice(0, -1),
  `${token}0`,
  token.replace('lk_', 'lx_'),
  token.replace('_k_', '_x_'),
  token.replace('_k_', '_K_'),
  token.replace('lk_k_', 'lk_k_8').slice(0, 81),
  token.replace(/^lk_k_./, 'lk_k_u'),
  token.replaceAll('_', '-'),
  `${token.slice(0, 60)} ${token.slice(60)}`,
  token.toUpperCase(),
];

const tomlOf = async () => {
  const script = 'import json, sys, tomllib; print(json.dumps(tomllib.loads(sys.stdin.read())))';
  const { stdout, status } = spawnSync('python3', ['-c', script], { input: blockOf('toml') });
  return status === 0 ? JSON.parse(stdout.toString()) : undefined;
};

const expressions = [
  ['the page', blockOf('text')],
  ['gitleaks', /^regex = '''(.*)'''$/m.exec(blockOf('toml'))?.[1] ?? ''],
  ['TruffleHog', parseYaml(blockOf('yaml')).detectors[0].regex.token],
] as const;

t.test('the regular expressions find every token in any text, and the stricter ones nothing else', async (t) => {
  for (const [name, expression] of expressions) {
    const pattern = new RegExp(expression, 'm');
    const found = (text: string) => {
      const match = pattern.exec(text);
      return match?.[1] ?? match?.[0];
    };
    for (const context of contexts) {
      for (const each of tokens) t.equal(found(context.replace('%', each)), each, `${name}: ${context}`);
    }
    const misses = name === 'the page' ? nearMisses.filter((text) => !text.startsWith(token)) : nearMisses;
    for (const text of misses) t.equal(found(text), undefined, `${name}: ${text}`);
  }
});

t.test('the rules name every kind of token as a keyword', async (t) => {
  const keywords = [...blockOf('toml').matchAll(/"(lk_._)"/g)].map(([, keyword]) => keyword);
  t.same(keywords, parseYaml(blockOf('yaml')).detectors[0].keywords);
  for (const kind of kinds) t.ok(keywords.includes(`lk_${kind}_`));
});

t.test('the file for gitleaks is TOML with the members of a rule', { skip: unlessInstalled('python3') }, async (t) => {
  const parsed = await tomlOf();
  if (parsed === undefined) {
    t.pass('this Python has no tomllib');
    return;
  }
  t.match(parsed, { extend: { useDefault: true }, rules: [{ id: 'latchkey-token', secretGroup: 1 }] });
  t.equal(parsed.rules[0].regex, expressions[1][1]);
});

const goProgram = `package main

import (
	"encoding/json"
	"os"
	"regexp"
)

func main() {
	var given struct{ Expression string; Texts []string }
	if err := json.NewDecoder(os.Stdin).Decode(&given); err != nil { panic(err) }
	pattern := regexp.MustCompile(given.Expression)
	found := []string{}
	for _, text := range given.Texts {
		match := pattern.FindStringSubmatch(text)
		if match == nil { found = append(found, "") } else { found = append(found, match[len(match)-1]) }
	}
	json.NewEncoder(os.Stdout).Encode(found)
}
`;

t.test("Go's regexp, with which the scanners search, finds the same", { skip: unlessInstalled('go') }, async (t) => {
  const folder = await scratch(t);
  await writeFile(path.join(folder, 'main.go'), goProgram);
  const env = { PATH: process.env['PATH'], HOME: folder, GOCACHE: path.join(folder, 'cache'), GOFLAGS: '-mod=mod' };
  const built = spawnSync('go', ['build', '-o', 'find', 'main.go'], { cwd: folder, env });
  t.equal(built.status, 0, String(built.stderr));
  const within = contexts.map((context, index) => context.replace('%', tokens[index] ?? ''));
  for (const [name, expression] of expressions) {
    const misses = name === 'the page' ? nearMisses.filter((text) => !text.startsWith(token)) : nearMisses;
    const Texts = [...within, ...misses];
    const input = JSON.stringify({ Expression: expression, Texts });
    const { stdout, stderr, status } = spawnSync(path.join(folder, 'find'), { input });
    t.equal(status, 0, String(stderr));
    t.same(JSON.parse(String(stdout)), [...contexts.map((_, index) => tokens[index]), ...misses.map(() => '')], name);
  }
});

const python = { skip: unlessInstalled('python3') };

t.test('find-tokens.py finds tokens by form and checksum, as Latchkey does', python, async (t) => {
  const folder = await scratch(t);
  const changed = [token.slice(0, -1) + (token.endsWith('0') ? '1' : '0'), token.replace(/_./, '_a')];
  const lines = [...tokens.map((each) => `KEY=${each}`), ...nearMisses, ...changed];
  const expected = lines.flatMap((line, index) => {
    const at = line.search(/lk_[kavo]_/);
    const parsed = at < 0 ? undefined : parseToken(line.slice(at, at + 81), 'lk');
    const kind = { k: 'API key', a: 'admin', v: 'verifier', o: 'operator' }[parsed?.kind as 'k'];
    return parsed === undefined ? [] : [`keys.env:${index + 1}: ${kind} …${line.slice(at, at + 81).slice(-4)}`];
  });
  t.equal(expected.length, tokens.length + 1, 'and the token before one character more');
  await writeFile(path.join(folder, 'keys.env'), `${lines.join('\n')}\n`);
  const script = path.resolve('docs/find-tokens.py');
  const { stdout, status } = spawnSync('python3', [script, 'keys.env'], { cwd: folder });
  t.same(stdout.toString().trim().split('\n'), expected);
  t.equal(status, 1);
  t.notMatch(stdout.toString(), token.slice(40, 60), 'it prints no secret');
  const own = spawnSync('python3', [script, '--prefix', 'acme'], { input: `${mint('a', 'acme')} ${mint('k')}` });
  t.match(own.stdout.toString(), /^-:1: admin …\w{4}\n$/);
  t.equal(spawnSync('python3', [script], { input: 'nothing' }).status, 0);
  t.equal(spawnSync('python3', [script, 'missing'], { cwd: folder }).status, 2);
});

t.test('the receiver passes a report on to a chat, and nothing that Latchkey did not sign', async (t) => {
  const folder = await scratch(t);
  await symlink(path.resolve('node_modules'), path.join(folder, 'node_modules'));
  const file = path.join(folder, 'to-chat.mts');
  await writeFile(file, blockOf('ts'));
  const chat = await listenHttp(t);
  const port = await freePort();
  const secret = generateWebhookSecret();
  const env = { WEBHOOK_SECRET: secret.reveal(), CHAT_URL: `http://127.0.0.1:${chat.port}/`, PORT: String(port) };
  const receiver = runScript(t, file, [], { cwd: folder, env });
  await eventually(async () => {
    const socket = connect(port, '127.0.0.1');
    const isOpen = await once(socket, 'connect').then(
      () => true,
      () => false,
    );
    socket.destroy();
    return isOpen;
  }, 30_000);
  const details = { source: 'gitleaks', url: 'https://git.example/x', note: null, action: 'suspend' };
  const body = JSON.stringify({ type: 'key.leak_reported', data: { keyId: 'key_1', details } });
  const send = async (headers: Record<string, string>) =>
    (await fetch(`http://127.0.0.1:${port}/`, { method: 'POST', body, headers })).status;
  const signed = {
    ...signDelivery([secret], { id: newId('delivery'), timestampSeconds: Math.floor(Date.now() / 1_000), body }),
  };
  t.equal(await send(signed), 204, receiver.output());
  const text = 'Key key_1 has leaked (gitleaks, https://git.example/x). Done: suspend.';
  t.same(
    chat.arrived.map((arrived) => JSON.parse(arrived.body.toString())),
    [{ text }],
  );
  t.equal(await send({ ...signed, 'webhook-signature': 'v1,AAAA' }), 401);
  t.equal(chat.arrived.length, 1);
});
