import type { Test } from 'tap';
import { generateKeyring, parseKeyring } from '../src/crypto/keyring.ts';
import { startService, type TestService } from './support/app.ts';
import { dbQuery } from './support/database.ts';
import { startLosingService } from './support/lossy-proxy.ts';
import { eventually, request, runEntry } from './support/process.ts';
import { t } from './support/tap.ts';

/** A service process on the same database. */
async function startProcess(t: Test, keyring: string, env: NodeJS.ProcessEnv) {
  const process = runEntry(t, 'server.ts', [], { env: { LATCHKEY_KEYRING: keyring, PORT: '0', ...env } });
  const [, url = ''] = await process.until(/Server listening at (http:\/\/[^"]+)"/);
  return { process, url };
}

const countReveals = async ({ urls }: TestService, keyId: string) => {
  const sql = "select count(*)::int as reveals from history where key_id = $1 and action = 'key.revealed'";
  const [row] = await dbQuery(urls.superuser, sql, [keyId]);
  return row?.['reveals'];
};

t.test('a reveal whose commit, or the reply to it, is lost gets 503 without the plaintext', async (t) => {
  for (const [what, reveals] of [
    ['the commit', 0],
    ['the reply to it', 1],
  ] as const) {
    const { service, proxy, process, url } = await startLosingService(t, { what, marker: 'key.revealed' });
    const { admin } = service;
    const { body: key } = await admin.post('/v1/keys', {});
    const reply = await request(`${url}/v1/keys/${key.id}/reveal`, { method: 'POST', token: admin.token });
    await proxy.lost;
    t.equal(reply.status, 503, what);
    t.same(Object.keys(reply.body), ['type', 'title', 'status', 'detail', 'code', 'requestId', 'traceId'], what);
    t.notMatch(JSON.stringify(reply.body), key.key, what);
    process.child.kill('SIGKILL');
    await process.exited;
    await eventually(async () => (await countReveals(service, key.id)) === reveals);
    t.pass(`${what}: ${reveals} reveals are recorded`);
    t.equal((await admin.post(`/v1/keys/${key.id}/reveal`)).body.key, key.key, 'the next reveal succeeds');
    t.equal(await countReveals(service, key.id), reveals + 1);
  }
});

t.test(
  'if the service is killed at any moment, nothing acknowledged is lost, and each change has its event',
  async (t) => {
    const keyring = generateKeyring(new Date());
    const service = await startService(t, { keyring: parseKeyring(keyring) });
    const { urls, admin } = service;
    const acknowledged = new Set<string>();
    for (let round = 0; round < 4; round++) {
      const { process, url } = await startProcess(t, keyring, { DATABASE_URL: urls.app });
      let isGone = false;
      void process.exited.then(() => {
        isGone = true;
      });
      const write = async (worker: number) => {
        for (let call = 0; !isGone; call++) {
          const body = { email: `p${round}-${worker}-${call}@p.example`, permissions: ['read', 'write'] };
          const reply = await request(`${url}/v1/partners`, { method: 'POST', token: admin.token, body }).catch(
            () => undefined,
          );
          if (reply?.status === 201) acknowledged.add(reply.body.id);
        }
      };
      const writers = [0, 1, 2, 3].map(write);
      const enough = 5 * (round + 1) + Math.floor(Math.random() * 10);
      await eventually(async () => acknowledged.size >= enough);
      process.child.kill('SIGKILL');
      await Promise.all(writers);
    }
    const [state] = await dbQuery(
      urls.superuser,
      `select array(select id from partners) as partners,
       (select count(*) from api_keys)::int as keys,
       array(select partner_id from history where action = 'partner.created') as partner_events,
       (select count(*) from history where action = 'key.created')::int as key_events`,
    );
    const { partners, keys, partner_events, key_events } = state as {
      partners: string[];
      keys: number;
      partner_events: string[];
      key_events: number;
    };
    t.same(
      [...acknowledged].filter((id) => !partners.includes(id)),
      [],
      'nothing acknowledged is lost',
    );
    t.same(partner_events.sort(), partners.sort(), 'each change has its event, and each event its change');
    t.same([keys, key_events], [2 * partners.length, 2 * partners.length]);
    t.match((await admin.get('/v1/history/verify')).body, { valid: true });
  },
);
