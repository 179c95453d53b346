import { spawnSync } from 'node:child_process';
import { writeFileSync } from 'node:fs';
import path from 'node:path';
import type { Test } from 'tap';
import { newId } from '../src/domain/ids.ts';
import { startService } from './support/app.ts';
import { chainOfTexts, exportOf, noteOf, publicKey, scratchFolder, textOf } from './support/histories.ts';
import { keyringOf, keyringText } from './support/keyrings.ts';
import { compiled, runEntry } from './support/process.ts';
import { t } from './support/tap.ts';

async function audit(t: Test, args: string[], env: NodeJS.ProcessEnv = {}) {
  const process = runEntry(t, 'cli/latchkey.ts', ['audit', 'verify', ...args], { env });
  const { code } = await process.exited;
  return { code, output: process.output() };
}

/** Without a data folder, no keyring of an embedded instance is found. */
const noDataFolder = { LATCHKEY_DATA_DIR: '/nowhere' };

const chain = newId('org');
const links = chainOfTexts([1, 2, 3].map((sequence) => textOf(chain, sequence, { text: 'a \u2028 b' })));
const noteAt = (size: number) => noteOf({ chain, size, hash: links[size - 1]?.hash ?? Buffer.alloc(32) });

t.test('an export can be verified without a database', async (t) => {
  const folder = scratchFolder(t);
  const file = (name: string, content: string | Buffer) => {
    writeFileSync(path.join(folder, name), content);
    return path.join(folder, name);
  };
  const text = file('export', exportOf(links));
  const key = file('key', publicKey);
  const head = links[2]?.hash.toString('hex');
  t.match(await audit(t, ['--export', text]), {
    code: 0,
    output: `ok      ${chain}: 3 events, the last with the hash ${head}.\n`,
  });
  const checkpoints = file('checkpoints', `torn\n\n${noteAt(1)}\n${noteAt(3)}\n${noteAt(3)}\nlatchkey/`);
  const compared = await audit(t, ['--export', text, '--checkpoint', checkpoints, '--public-key', key]);
  t.equal(compared.code, 0);
  t.match(compared.output, /^note {4}2 texts in .* are not complete checkpoints/m);
  t.match(compared.output, new RegExp(`^ok {6}${chain}: 3 events, .*, as in 2 checkpoints\\.$`, 'm'));
  const withKeyring = await audit(t, ['--export', text, '--checkpoint', checkpoints], {
    ...noDataFolder,
    LATCHKEY_KEYRING: keyringText('evidence'),
  });
  t.equal(withKeyring.code, 0, 'the keyring can replace the public key');

  const empty = file('empty', '');
  t.match(await audit(t, ['--export', empty, '--checkpoint', checkpoints, '--public-key', key]), {
    code: 1,
    output: `wrong   ${chain}: the first bad event is 1: a checkpoint has signed 3 events`,
  });
  const failures: Array<[what: string, args: string[], output: RegExp]> = [
    ['nothing in it', ['--export', empty], /is empty\. Use --organization to name the chain that it should contain/],
    ['no key', ['--export', text, '--checkpoint', checkpoints], /Use --public-key FILE, or set the keyring/],
    [
      'a key file without a key',
      ['--export', text, '--checkpoint', checkpoints, '--public-key', text],
      /contains no public key/,
    ],
    [
      'a forged checkpoint',
      ['--export', text, '--checkpoint', file('forged', noteAt(3).replace('\n3\n', '\n2\n')), '--public-key', key],
      /^wrong {3}The signature of a checkpoint of org_.* with 2 events is invalid\.$/m,
    ],
    [
      'checkpoints of another service',
      [
        '--export',
        text,
        '--checkpoint',
        file('other', noteOf({ chain: 'installation', size: 1, hash: Buffer.alloc(32) })),
        '--public-key',
        key,
        '--organization',
        chain,
      ],
      /^wrong {3}org_.*: no given checkpoint covers this chain\.$/m,
    ],
    [
      'another organization',
      ['--export', text, '--organization', newId('org')],
      /first bad event is 1: the event belongs to another/,
    ],
    ['a file that is not there', ['--export', '/no/such/file'], /ENOENT/],
  ];
  for (const [what, args, output] of failures) t.match(await audit(t, args, noDataFolder), { code: 1, output }, what);
  t.match(await audit(t, ['--organization', 'nobody']), { code: 2, output: /Must be the id of an organization/ });
  t.match(await audit(t, ['--eat']), { code: 2 });
});

t.test('audit verify checks a whole installation, and an export from a pipe', async (t) => {
  const service = await startService(t, { keyring: keyringOf('evidence') });
  const { urls, admin, organizationId, app } = service;
  const { body: text } = await app.inject({
    url: '/v1/history/export',
    headers: { authorization: `Bearer ${admin.token}` },
  });
  const { body: note } = await app.inject({
    url: '/v1/history/checkpoint',
    headers: { authorization: `Bearer ${admin.token}` },
  });
  const file = path.join(scratchFolder(t), 'checkpoint');
  writeFileSync(file, note);
  const env = { DATABASE_URL: urls.app, LATCHKEY_KEYRING: keyringText('evidence') };
  const { code, output } = await audit(t, ['--checkpoint', file], env);
  t.equal(code, 0);
  t.match(output, /^Verifying events: 4 of 4$/m);
  t.match(output, new RegExp(`^ok {6}${organizationId}: 3 events, .*, as in 1 checkpoint\\.$`, 'm'));
  t.notMatch(output, 'as 0 checkpoints say');
  t.match(output, /^note {4}installation: no given checkpoint covers this chain/m);

  const other = { ...env, LATCHKEY_KEYRING: keyringText('other') };
  t.match(await audit(t, ['--checkpoint', file], other), {
    code: 1,
    output: /^wrong {3}1 checkpoint is signed with other keys than the given ones\.$/m,
  });
  const piped = spawnSync(process.execPath, [compiled('src/cli/latchkey.ts'), 'audit', 'verify', '--export', '-'], {
    input: text,
    encoding: 'utf8',
  });
  t.match(piped, { status: 0, stdout: `ok      ${organizationId}: 3 events` });
});
