import { startService } from './support/app.ts';
import { dbQuery } from './support/database.ts';
import { dbWriteKeys, keyringOf } from './support/keyrings.ts';
import { eventually } from './support/process.ts';
import { entriesOf, hold, runRekey, startRekey } from './support/rekey.ts';
import { t } from './support/tap.ts';

t.test('a killed run is completed by the next one, and no key is half moved', async (t) => {
  const service = await startService(t, { keyring: keyringOf('new', 'old') });
  const { urls } = service;
  const keys = await dbWriteKeys(urls.superuser, keyringOf('old'), service.bootstrapped.organizationId, 4_000);
  const killedRun = startRekey(t, urls.app, 'new', 'old');
  await killedRun.until(/Rekeying [1-9]\d* of 4000/);
  killedRun.child.kill('SIGKILL');
  await killedRun.exited;
  const halfway = await entriesOf(urls.superuser);
  t.match(halfway, [
    { sealed: 'new', tag: 'new' },
    { sealed: 'old', tag: 'old' },
  ]);
  t.equal(halfway.length, 2, 'each key is under one entry or the other');
  const remaining = Number(halfway[1]?.['keys']);

  t.match(await runRekey(t, urls.app, 'new', 'old'), { code: 0, output: `${remaining} keys were moved to new.` });
  t.same(await entriesOf(urls.superuser), [{ sealed: 'new', tag: 'new', keys: 4_000 }]);
  for (const { id, plaintext } of keys.filter((_, index) => index % 400 === 0)) {
    t.equal((await service.admin.post(`/v1/keys/${id}/reveal`)).body.key, plaintext);
    t.equal((await service.verifier.post('/v1/verify', { key: plaintext, permission: 'read' })).body.code, 'valid');
  }
});

t.test('during a rekey, verifications, reveals and deletions have correct results', async (t) => {
  const service = await startService(t, { keyring: keyringOf('new', 'old') });
  const { urls, admin, verifier } = service;
  const keys = await dbWriteKeys(urls.superuser, keyringOf('old'), service.bootstrapped.organizationId, 6_000);
  const rekeying = startRekey(t, urls.app, 'new', 'old');
  let isOver = false;
  void rekeying.exited.then(() => {
    isOver = true;
  });
  const [deleting, deleted] = [new Set<string>(), new Set<string>()];
  const anyKey = () => keys[Math.floor(Math.random() * keys.length)] ?? keys[0];
  const counts = { verified: 0, revealed: 0, deleted: 0 };
  const work = async (worker: number) => {
    while (!isOver) {
      const key = anyKey();
      if (key === undefined) return;
      const wasDeleted = deleted.has(key.id);
      const { body: verdict } = await verifier.post('/v1/verify', { key: key.plaintext, permission: 'read' });
      counts.verified += 1;
      if (wasDeleted) t.equal(verdict.code, 'deleted');
      else if (!deleting.has(key.id)) t.equal(verdict.code, 'valid');
      if (worker === 0 && !deleting.has(key.id)) {
        deleting.add(key.id);
        const reason = counts.deleted % 2 === 0 ? 'compromised' : 'unused';
        t.equal((await admin.delete(`/v1/keys/${key.id}?reason=${reason}`)).status, 200);
        deleted.add(key.id);
        counts.deleted += 1;
      }
      if (worker === 1 && !deleting.has(key.id)) {
        const { status, body } = await admin.post(`/v1/keys/${key.id}/reveal`);
        if (status === 200) t.equal(body.key, key.plaintext);
        else t.ok(deleting.has(key.id), `revealing answered ${status}`);
        counts.revealed += 1;
      }
    }
  };
  await Promise.all([0, 1, 2, 3].map(work));
  t.same((await rekeying.exited).code, 0);
  t.ok(counts.verified > 100 && counts.revealed > 20 && counts.deleted > 20, JSON.stringify(counts));
  const remainingSeals = await dbQuery(
    urls.superuser,
    `select count(*) filter (where sealed is not null)::int as sealed,
       count(*) filter (where delete_reason = 'compromised')::int as wiped,
       count(*) filter (where sealed_keyring_id = 'old')::int as stale from api_keys`,
  );
  const wiped = Math.ceil(counts.deleted / 2);
  t.same(remainingSeals, [{ sealed: 6_000 - wiped, wiped, stale: 0 }]);
  const before = service.hasher.runs;
  for (const key of keys.filter((_, index) => index % 50 === 0)) {
    const { body } = await verifier.post('/v1/verify', { key: key.plaintext, permission: 'read' });
    t.equal(body.code, deleted.has(key.id) ? 'deleted' : 'valid');
  }
  t.equal(service.hasher.runs, before);
  t.match((await admin.get('/v1/history/verify')).body, { firstBadSequence: null, flaws: [] });
});

t.test('rekey skips a locked key and retries it', async (t) => {
  const service = await startService(t, { keyring: keyringOf('new', 'old') });
  const { urls } = service;
  const { organizationId } = service.bootstrapped;
  const [held, wiped, other] = await dbWriteKeys(urls.superuser, keyringOf('old'), organizationId, 3);
  const release = await hold(service, held?.id);
  const releaseWiped = await hold(service, wiped?.id);
  const rekeying = startRekey(t, urls.app, 'new', 'old');
  const isDone = async (id: string | undefined) => {
    const [row] = await dbQuery(urls.superuser, 'select sealed_keyring_id as entry from api_keys where id = $1', [id]);
    return row?.['entry'] === 'new';
  };
  await eventually(() => isDone(other?.id));
  t.equal(await isDone(held?.id), false);
  await releaseWiped('sealed = null, sealed_keyring_id = null');
  await release();
  t.equal((await rekeying.exited).code, 0);
  t.equal(await isDone(held?.id), true);
  t.same(
    await dbQuery(urls.superuser, 'select sealed, tag_keyring_id as tag from api_keys where id = $1', [wiped?.id]),
    [{ sealed: null, tag: 'old' }],
    'values that were deleted during the run are not restored',
  );

  await t.test('rekey gives up on a key that stays locked', async (t) => {
    const [stuck] = await dbWriteKeys(urls.superuser, keyringOf('old'), organizationId, 1);
    const release = await hold(service, stuck?.id);
    const result = await runRekey(t, urls.app, 'new', 'old');
    t.match(result, { code: 1, output: /^wrong {3}1 key was locked by other transactions\./m });
    await release();
  });
});
