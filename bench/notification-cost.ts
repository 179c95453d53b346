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
import type { Testbed } from './testbed.ts';

/** Recorded changes per second, with and without the triggers that notify of changes. */
export interface NotificationCost {
  /** Concurrent writers, each in a separate organization. */
  writers: number;
  changesPerSecond: { withTriggers: number; withoutTriggers: number };
}

const actor: Actor = { type: 'system', id: 'bench', name: 'bench', email: null };

interface Writer {
  context: OrganizationContext;
  keyId: string;
}

/** Measures updates, because inserts cause no notification. */
export async function measureNotificationCosts(
  testbed: Testbed,
  { writerCounts, rounds, seconds }: { writerCounts: number[]; rounds: number; seconds: number },
): Promise<NotificationCost[]> {
  const maximumWriters = Math.max(...writerCounts);
  const writers = await Promise.all(Array.from({ length: maximumWriters }, () => createWriter(testbed)));
  const client = connect({ url: testbed.urls.app, poolSize: maximumWriters });
  const superuser = new pg.Client({ connectionString: testbed.urls.superuser });
  await superuser.connect();
  const setTriggers = (mode: 'enable always' | 'disable') =>
    superuser.query(`alter table api_keys ${mode} trigger api_keys_notify`);
  try {
    const results: NotificationCost[] = [];
    for (const count of writerCounts) {
      const write = () => writeFor(writers.slice(0, count), client.db, seconds);
      const [withTriggers, withoutTriggers]: [number[], number[]] = [[], []];
      for (let round = 0; round < rounds; round++) {
        withTriggers.push(await write());
        await setTriggers('disable');
        withoutTriggers.push(await write());
        await setTriggers('enable always');
      }
      const changesPerSecond = { withTriggers: median(withTriggers), withoutTriggers: median(withoutTriggers) };
      results.push({ writers: count, changesPerSecond });
    }
    return results;
  } finally {
    await superuser.end();
    await client.close();
  }
}

async function createWriter(testbed: Testbed): Promise<Writer> {
  const { transactor, crypto } = testbed;
  const { organizationId } = await bootstrap(
    { transactor, crypto },
    { organizationName: 'Writer', adminEmail: 'bench@example.com' },
  );
  const [key = ''] = await testbed.addKeys(organizationId, 1);
  return { context: { actor, organizationId, request: null }, keyId: `key_${key.slice(5, 31)}` };
}

/** @returns changes per second, of all writers together */
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
    writers.map(async ({ context, keyId }) => {
      while (performance.now() < endsAtMs) {
        await transact(transactor, context, (work) =>
          patchKey(work, keyId, { name: `Change ${changes++}` }, undefined),
        );
      }
    }),
  );
  return changes / seconds;
}
