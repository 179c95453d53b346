import { readdirSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { startService } from './support/app.ts';
import { dbBackdate } from './support/archives.ts';
import { dbQuery } from './support/database.ts';
import { keyringOf, keyringText } from './support/keyrings.ts';
import { compiled, run } from './support/process.ts';
import { unlessInstalled } from './support/programs.ts';
import { snippetsOf } from './support/snippets.ts';
import { t } from './support/tap.ts';

t.test(
  'the commands of docs/archiving.md archive, verify and search',
  { skip: unlessInstalled('jq') || unlessInstalled('psql') },
  async (t) => {
    const service = await startService(t, { keyring: keyringOf('evidence') });
    const { app, admin, urls, organizationId } = service;
    const { body: key } = await admin.post('/v1/keys', { name: 'Old' });
    await admin.post(`/v1/keys/${key.id}/reveal`, { reason: 'The partner lost it' });
    await dbBackdate(urls.superuser, organizationId, 500);
    await admin.put('/v1/rate-limit', { requests: 2, windowSeconds: 60 });
    const folder = t.testdir({ bin: {} });
    const program = `#!/bin/sh\nexec "${process.execPath}" "${compiled('src/cli/latchkey.ts')}" "$@"\n`;
    writeFileSync(path.join(folder, 'bin', 'latchkey'), program, { mode: 0o755 });
    writeFileSync(path.join(folder, 'checkpoints.txt'), (await admin.get('/v1/history/checkpoint')).body);
    const env = {
      PATH: `${folder}/bin:${process.env['PATH']}`,
      DATABASE_URL: urls.app,
      MIGRATION_DATABASE_URL: urls.owner,
      LATCHKEY_KEYRING: keyringText('evidence'),
      ORGANIZATION: organizationId,
      KEY_ID: key.id,
      LATCHKEY: await app.listen({ host: '127.0.0.1', port: 0 }),
      ADMIN_TOKEN: admin.token,
    };
    const shell = async (section: string) => {
      const [commands = ''] = await snippetsOf('docs/archiving.md', section, 'sh');
      const sh = run(t, 'sh', ['-euc', commands], { cwd: folder, env });
      const { code } = await sh.exited;
      t.equal(code, 0, sh.output());
      return sh.output();
    };
    const archived = await shell('Archive a chain');
    t.match(archived, /events 1 to 5 would be moved to history-org_.*-until-\d{4}-\d\d-\d\d\.ndjson/);
    t.match(archived, /events 1 to 5 were moved to/);
    t.match(archived, /events 1 to 5 are archived, and were verified in the given files/);
    t.equal(readdirSync(folder).filter((name) => name.endsWith('.ndjson')).length, 1);
    t.match(
      await shell('Verify files'),
      /^ok {6}org_.*: 6 events(.*\n)*ok {6}org_.*: 5 events(.*\n)*ok {6}org_.*: 6 events.*, as in 1 checkpoint/m,
    );
    const found = await shell('Search archived events');
    t.match(found, /"reason":"The partner lost it"/);
    t.match(found, /"action":"key.created"/);
    await shell('Disk space');
    t.match(await dbQuery(urls.app, 'select count(*)::int from history where chain = $1', [organizationId]), [
      { count: 1 },
    ]);
  },
);
