import pg from 'pg';
import { generateKeyring, parseKeyring } from '../src/crypto/keyring.ts';
import { connect, type Db } from '../src/database/client.ts';
import { createDatabaseClock } from '../src/database/clock.ts';
import { type OrganizationContext, transact } from '../src/database/work.ts';
import type { Actor } from '../src/domain/actor.ts';
import { patchKey } from '../src/keys/commands.ts';
import { bootstrap } from '../src/service/bootstrap.ts';
import { enqueueDeliveries } from '../src/webhooks/enqueue-deliveries.ts';
import { median } from './sampling.ts';
import type { Stage } from './testbed.ts';

/** Changes with their history rows, committed by writers that do not wait for each other but in Postgres. */
export interface Notifying {
  writers: number;
  /** Each writer in an organization of its own. */
  changesASecond: { withTriggers: number; withoutTriggers: number };
}

const actor: Actor = { type: 'system', id: 'bench', name: 'bench', email: null };

interface Writer {
  by: OrganizationContext;
  keyId: string;
}

/** The cost of the triggers that notify of changes: Postgres lets one notifying transaction commit at a time. */
export async function measureNotifying(
  stage: Stage,
  { writerCounts, rounds, seconds }: { writerCounts: number[]; rounds: number; seconds: number },
): Promise<Notifying[]> {
  const most = Math.max(...writerCounts);
  const writers = await Promise.all(Array.from({ length: most }, () => makeWriter(stage)));
  const client = connect({ url: stage.urls.app, poolSize: most });
  const superuser = new pg.Client({ connectionString: stage.urls.superuser });
  await superuser.connect();
  const setTriggers = (mode: 'enable always' | 'disable') =>
    superuser.query(`alter table api_keys ${mode} trigger api_keys_notify`);
  try {
    const results: Notifying[] = [];
    for (const count of writerCounts) {
      const write = () => writeFor(writers.slice(0, count), client.db, seconds);
      const [withTriggers, withoutTriggers]: [number[], number[]] = [[], []];
      for (let round = 0; round < rounds; round++) {
        withTriggers.push(await write());
        await setTriggers('disable');
        withoutTriggers.push(await write());
        await setTriggers('enable always');
      }
      const changesASecond = { withTriggers: median(withTriggers), withoutTriggers: median(withoutTriggers) };
      results.push({ writers: count, changesASecond });
    }
    return results;
  } finally {
    await superuser.end();
    await client.close();
  }
}

async function makeWriter(stage: Stage): Promise<Writer> {
  const { transactor, crypto } = stage;
  const { organizationId } = await bootstrap(
    { transactor, crypto },
    { organizationName: 'Writer', adminEmail: 'bench@example.com' },
  );
  const [key = ''] = await stage.addKeys(organizationId, 1);
  return { by: { actor, organizationId, request: null }, keyId: `key_${key.slice(5, 31)}` };
}

/** @returns changes a second, of all together */
async function writeFor(writers: Writer[], db: Db, seconds: number): Promise<number> {
  const transactor = {
    db,
    keyring: parseKeyring(generateKeyring(new Date())),
    clock: createDatabaseClock(),
    onAppended: enqueueDeliveries,
  };
  const endsAtMs = performance.now() + seconds * 1000;
  let changes = 0;
  await Promise.all(
    writers.map(async ({ by, keyId }) => {
      while (performance.now() < endsAtMs) {
        await transact(transactor, by, (work) => patchKey(work, keyId, { name: `Change ${changes++}` }, undefined));
      }
    }),
  );
  return changes / seconds;
}
