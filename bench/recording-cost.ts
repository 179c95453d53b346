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
import type { TargetResult } from './report.ts';
import { median } from './sampling.ts';
import type { Testbed } from './testbed.ts';

/** Inserts per second, each in a separate transaction, with and without an event in the chain. */
export interface RecordingCost {
  connections: number;
  organizations: number;
  insertsPerSecond: { recorded: number; plain: number };
}

const connections = 8;
/** The target in recorded inserts per second, by the number of organizations. */
const minimumPerSecond: Record<number, number> = { 1: 500, 10: 1_000 };

const actor: Actor = { type: 'system', id: 'bench', name: 'bench', email: null };

export async function measureRecordingCosts(
  testbed: Testbed,
  { rounds, seconds }: { rounds: number; seconds: number },
): Promise<RecordingCost[]> {
  const client = connect({ url: testbed.urls.app, poolSize: connections });
  try {
    const results: RecordingCost[] = [];
    for (const organizations of Object.keys(minimumPerSecond).map(Number)) {
      const contexts = await Promise.all(Array.from({ length: organizations }, () => createOrganization(client.db)));
      const [recorded, plain]: [number[], number[]] = [[], []];
      for (let round = 0; round < rounds; round++) {
        recorded.push(await insertRepeatedly(client.db, contexts, { seconds, isRecorded: true }));
        plain.push(await insertRepeatedly(client.db, contexts, { seconds, isRecorded: false }));
      }
      results.push({
        connections,
        organizations,
        insertsPerSecond: { recorded: median(recorded), plain: median(plain) },
      });
    }
    return results;
  } finally {
    await client.close();
  }
}

const keyring = parseKeyring(generateKeyring(new Date()));

async function createOrganization(db: Db): Promise<OrganizationContext> {
  const context = { actor, organizationId: newId('org'), request: null };
  await transact({ db, keyring, clock: createDatabaseClock(), onAppended: enqueueDeliveries }, context, (work) =>
    addOrganization(work, { name: context.organizationId }),
  );
  return context;
}

/** Distributes the inserts evenly over the organizations. @returns inserts per second, of all connections together */
async function insertRepeatedly(
  db: Db,
  contexts: readonly OrganizationContext[],
  { seconds, isRecorded }: { seconds: number; isRecorded: boolean },
): Promise<number> {
  const transactor = { db, keyring, clock: createDatabaseClock(), onAppended: enqueueDeliveries };
  const endsAtMs = performance.now() + seconds * 1000;
  let inserts = 0;
  const insertUntilEnd = async () => {
    while (performance.now() < endsAtMs) {
      const context = contexts[inserts++ % contexts.length];
      if (context !== undefined) await insertOne(transactor, context, isRecorded);
    }
  };
  await Promise.all(Array.from({ length: connections }, insertUntilEnd));
  return inserts / seconds;
}

/** Inserts a partner, because an insert causes no notification. */
async function insertOne(
  transactor: Parameters<typeof transact>[0],
  context: OrganizationContext,
  isRecorded: boolean,
): Promise<void> {
  await transact(transactor, context, async (work) => {
    const id = newId('partner');
    await insertPartner(work.tx, partnerRow(context.organizationId, id, work.now));
    if (!isRecorded) return;
    const details = { email: `${id}@p.example`, name: null, externalId: null, permissions: ['read'], rateLimit: null };
    record(work, { action: 'partner.created', partnerId: id, details });
  });
}

function partnerRow(organizationId: OrganizationId, id: ReturnType<typeof newId<'partner'>>, now: Date) {
  return {
    id,
    organization_id: organizationId,
    email: `${id}@p.example`,
    name: null,
    external_id: null,
    metadata: {},
    permissions: ['read' as const],
    rate_limit_requests: null,
    rate_limit_window_seconds: null,
    created_at: now,
    created_by: actor,
    suspended_at: null,
    deleted_at: null,
  };
}

export function formatRecordingCost({ connections, organizations, insertsPerSecond }: RecordingCost): string {
  return (
    `Inserts per second, connections: ${connections}, organizations: ${organizations}: ` +
    `${Math.round(insertsPerSecond.recorded)} recorded, ${Math.round(insertsPerSecond.plain)} plain.`
  );
}

export function checkRecordingTargets(costs: readonly RecordingCost[]): TargetResult[] {
  return costs.map(({ connections, organizations, insertsPerSecond: { recorded } }) => {
    const minimum = minimumPerSecond[organizations] ?? 0;
    return {
      target: `recorded inserts, connections: ${connections}, organizations: ${organizations}: at least ${minimum} per second`,
      isMet: recorded >= minimum,
      measured: String(Math.round(recorded)),
    };
  });
}
