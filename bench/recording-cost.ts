import { generateKeyring, parseKeyring } from '../src/crypto/keyring.ts';
import { connect, type Db } from '../src/database/client.ts';
import { createDatabaseClock } from '../src/database/clock.ts';
import { type OrganizationContext, transact } from '../src/database/work.ts';
import type { Actor } from '../src/domain/actor.ts';
import { newId, type OrganizationId } from '../src/domain/ids.ts';
import { record } from '../src/history/record.ts';
import { addOrganization } from '../src/organizations/commands.ts';
import { insertPartner } from '../src/partners/store.ts';
import { enqueueDeliveries } from '../src/webhooks/enqueue-deliveries.ts';
import type { Promised } from './report.ts';
import { median } from './sampling.ts';
import type { Stage } from './testbed.ts';

/** What recording costs: the same insert in a transaction of its own, with its event in the chain and without. */
export interface Recording {
  connections: number;
  organizations: number;
  changesASecond: { recorded: number; plain: number };
}

const connections = 8;
const least: Record<number, number> = { 1: 500, 10: 1_000 };

const actor: Actor = { type: 'system', id: 'bench', name: 'bench', email: null };

export async function measureRecording(
  stage: Stage,
  { rounds, seconds }: { rounds: number; seconds: number },
): Promise<Recording[]> {
  const client = connect({ url: stage.urls.app, poolSize: connections });
  try {
    const results: Recording[] = [];
    for (const organizations of Object.keys(least).map(Number)) {
      const contexts = await Promise.all(Array.from({ length: organizations }, () => makeOrganization(client.db)));
      const [recorded, plain]: [number[], number[]] = [[], []];
      for (let round = 0; round < rounds; round++) {
        recorded.push(await insertFor(client.db, contexts, { seconds, isRecorded: true }));
        plain.push(await insertFor(client.db, contexts, { seconds, isRecorded: false }));
      }
      results.push({
        connections,
        organizations,
        changesASecond: { recorded: median(recorded), plain: median(plain) },
      });
    }
    return results;
  } finally {
    await client.close();
  }
}

const keyring = parseKeyring(generateKeyring(new Date()));

async function makeOrganization(db: Db): Promise<OrganizationContext> {
  const by = { actor, organizationId: newId('org'), request: null };
  await transact({ db, keyring, clock: createDatabaseClock(), onAppended: enqueueDeliveries }, by, (work) =>
    addOrganization(work, { name: by.organizationId }),
  );
  return by;
}

/** @returns changes a second, of all connections together; the organizations take turns */
async function insertFor(
  db: Db,
  contexts: readonly OrganizationContext[],
  { seconds, isRecorded }: { seconds: number; isRecorded: boolean },
): Promise<number> {
  const transactor = { db, keyring, clock: createDatabaseClock(), onAppended: enqueueDeliveries };
  const endsAtMs = performance.now() + seconds * 1000;
  let changes = 0;
  const work = async () => {
    while (performance.now() < endsAtMs) {
      const by = contexts[changes++ % contexts.length];
      if (by !== undefined) await insertOne(transactor, by, isRecorded);
    }
  };
  await Promise.all(Array.from({ length: connections }, work));
  return changes / seconds;
}

/** A new partner causes no notification (docs/performance.md), so only the recording is measured. */
async function insertOne(
  transactor: Parameters<typeof transact>[0],
  by: OrganizationContext,
  isRecorded: boolean,
): Promise<void> {
  await transact(transactor, by, async (work) => {
    const id = newId('partner');
    await insertPartner(work.tx, partnerOf(by.organizationId, id, work.now));
    if (!isRecorded) return;
    const details = { email: `${id}@p.example`, name: null, permissions: ['read'], rateLimit: null };
    record(work, { action: 'partner.created', partnerId: id, details });
  });
}

function partnerOf(organizationId: OrganizationId, id: ReturnType<typeof newId<'partner'>>, now: Date) {
  return {
    id,
    organization_id: organizationId,
    email: `${id}@p.example`,
    name: null,
    permissions: ['read' as const],
    rate_limit_requests: null,
    rate_limit_window_seconds: null,
    created_at: now,
    created_by: actor,
    suspended_at: null,
    deleted_at: null,
  };
}

export function tellRecording({ connections, organizations, changesASecond: { recorded, plain } }: Recording): string {
  return (
    `Recorded inserts a second at ${connections} connections in ${organizations} ` +
    `organization${organizations === 1 ? '' : 's'}: ${Math.round(recorded)}; plain ones: ${Math.round(plain)}.`
  );
}

export function judgeRecording(recordings: readonly Recording[]): Promised[] {
  return recordings.map(({ connections, organizations, changesASecond: { recorded } }) => {
    const aim = least[organizations] ?? 0;
    return {
      promise: `recorded changes at ${connections} connections, organizations: ${organizations}: at least ${aim} a second`,
      kept: recorded >= aim,
      measured: String(Math.round(recorded)),
    };
  });
}
