import fc from 'fast-check';
import type { Test } from 'tap';
import { purgeDeletedKeys } from '../src/keys/jobs.ts';
import { enqueueDeliveries } from '../src/webhooks/enqueue-deliveries.ts';
import { type Client, type Json, type Reply, startService, type TestService } from './support/app.ts';
import {
  type AskedPermission,
  dayMs,
  deletedWithPartner,
  dueForPurge,
  hourMs,
  isLive,
  liveIn,
  type ModelKey,
  type ModelState,
  type Refusal,
  type RowName,
  refusesChange,
  refusesDeletion,
  refusesNewKey,
  refusesRestore,
  refusesRotation,
  retentionMs,
  statusOf,
  undoWindowMs,
  verdictOf,
} from './support/model.ts';
import { t } from './support/tap.ts';

// Random sequences of commands on the real service and on a small model give the same results. `MODEL_RUNS` is the
// number of runs.

const runs = Number(process.env['MODEL_RUNS'] ?? 100);

/** The service as one run sees it, in its own organization. */
interface Real {
  service: TestService;
  admin: Client;
  verifier: Client;
  partnerId: string;
}

type Command = fc.AsyncCommand<ModelState, Real>;

/** @param run applies the command to model and service; throws if they differ */
function command(name: string, run: (model: ModelState, real: Real) => Promise<void>, needsKey = true): Command {
  return {
    check: ({ keys }) => !needsKey || keys.length > 0,
    async run(model, real) {
      await run(model, real);
      await requireSameRows(model, real);
    },
    toString: () => name,
  };
}

function same(what: string, found: unknown, expected: unknown): void {
  if (JSON.stringify(found) === JSON.stringify(expected)) return;
  throw new Error(`${what}: the service says ${JSON.stringify(found)}, the model ${JSON.stringify(expected)}`);
}

/** @returns whether the command was done */
function agreed(what: string, reply: Reply, refusal: Refusal): boolean {
  const found = reply.status < 300 ? undefined : reply.body.code;
  same(what, found ?? null, refusal ?? null);
  return refusal === undefined;
}

async function requireSameRows(model: ModelState, { admin }: Real): Promise<void> {
  const { body } = await admin.get('/v1/rows');
  for (const row of ['default', 'read', 'write'] as const) {
    const shownPermission = row === 'default' ? 'read_write' : row;
    const shown = body.data.find(({ permission }: Json) => permission === shownPermission);
    const keys = (shown?.keys ?? []).map(({ id, status }: Json) => `${id} ${status}`).sort();
    if (keys.length > 2) throw new Error(`${row} holds ${keys.length} live keys`);
    const expected = liveIn(model, row).map((key) => `${key.id} ${statusOf(model, key)}`);
    same(`row ${row}`, keys, expected.sort());
  }
}

const pick = ({ keys }: ModelState, index: number): ModelKey => keys[index % keys.length] as ModelKey;

function addKey(model: ModelState, row: RowName, body: Json, expiresAtMs: number | null): void {
  const { id, key: plaintext } = body;
  model.keys.push({ id, plaintext, row, expiresAtMs, isSuspended: false, deleted: null, isPurged: false });
}

const create = (row: RowName, lifeMs: number | null) =>
  command(
    `create(${row}, ${lifeMs})`,
    async (model, { admin, partnerId, service }) => {
      const expiresAt = lifeMs === null ? null : new Date(service.clock.nowMs() + lifeMs).toISOString();
      const where = row === 'default' ? {} : { partnerId, permission: row };
      const reply = await admin.post('/v1/keys', { ...where, expiresAt });
      if (!agreed('create', reply, refusesNewKey(model, row))) return;
      addKey(model, row, reply.body, lifeMs === null ? null : model.nowMs + lifeMs);
      model.actions.push('key.created');
    },
    false,
  );

const rotate = (index: number, endSeconds: number | undefined) =>
  command(`rotate(${index}, ${endSeconds})`, async (model, { admin }) => {
    const old = pick(model, index);
    const reply = await admin.post(`/v1/keys/${old.id}/rotate`, { expireOldAfterSeconds: endSeconds });
    if (!agreed('rotate', reply, refusesRotation(model, old))) return;
    addKey(model, old.row, reply.body, null);
    model.actions.push('key.created', 'key.rotated');
    if (endSeconds === undefined) return;
    old.expiresAtMs = Math.min(old.expiresAtMs ?? Number.POSITIVE_INFINITY, model.nowMs + endSeconds * 1_000);
  });

const suspend = (index: number, isSuspended: boolean) =>
  command(`${isSuspended ? 'suspend' : 'resume'}(${index})`, async (model, { admin }) => {
    const key = pick(model, index);
    const reply = await admin.post(`/v1/keys/${key.id}/${isSuspended ? 'suspend' : 'resume'}`);
    if (!agreed('suspend', reply, refusesChange(key)) || key.isSuspended === isSuspended) return;
    key.isSuspended = isSuspended;
    model.actions.push(isSuspended ? 'key.suspended' : 'key.resumed');
  });

const remove = (index: number, reason: string) =>
  command(`delete(${index}, ${reason})`, async (model, { admin }) => {
    const key = pick(model, index);
    const reply = await admin.delete(`/v1/keys/${key.id}?reason=${reason}`);
    if (!agreed('delete', reply, refusesDeletion(key, reason))) return;
    key.deleted = { atMs: key.deleted?.atMs ?? model.nowMs, reason };
    model.actions.push('key.deleted');
  });

const restore = (index: number) =>
  command(`restore(${index})`, async (model, { admin }) => {
    const key = pick(model, index);
    const reply = await admin.post(`/v1/keys/${key.id}/restore`);
    if (!agreed('restore', reply, refusesRestore(model, key))) return;
    key.deleted = null;
    model.actions.push('key.restored');
  });

const reveal = (index: number) =>
  command(`reveal(${index})`, async (model, { admin }) => {
    const key = pick(model, index);
    const reply = await admin.post(`/v1/keys/${key.id}/reveal`);
    if (!agreed('reveal', reply, refusesChange(key))) return;
    same('plaintext', reply.body.key, key.plaintext);
    model.actions.push('key.revealed');
  });

const verify = (index: number, permission: AskedPermission) =>
  command(`verify(${index}, ${permission})`, async (model, { verifier }) => {
    const key = pick(model, index);
    const { body } = await verifier.post('/v1/verify', { key: key.plaintext, permission });
    same(`verify ${permission}`, body.code, verdictOf(model, key, permission));
  });

const advance = (ms: number) =>
  command(
    `advance(${ms / hourMs} h)`,
    async (model, { service }) => {
      service.later(ms);
      model.nowMs += ms;
    },
    false,
  );

const purge = () =>
  command('purge()', async (model, { service }) => {
    const { client, keyring, clock, verification } = service;
    const transactor = {
      db: client.db,
      keyring,
      clock,
      onAppended: enqueueDeliveries,
      onChanged: verification.records.invalidate,
    };
    await purgeDeletedKeys({ transactor, retentionSeconds: retentionMs / 1_000 });
    for (const key of dueForPurge(model)) {
      key.isPurged = true;
      model.actions.push('key.purged');
    }
  });

const changePartner = (what: 'suspend' | 'resume' | 'delete' | 'restore') =>
  command(
    `${what}Partner()`,
    async (model, { admin, partnerId }) => {
      const { partner } = model;
      const url = `/v1/partners/${partnerId}`;
      const reply = await (what === 'delete' ? admin.delete(url) : admin.post(`${url}/${what}`));
      const { deletedAtMs } = partner;
      if (what === 'restore') {
        const isOver = deletedAtMs !== null && model.nowMs - deletedAtMs >= undoWindowMs;
        const refusal = deletedAtMs === null ? 'conflict' : isOver ? 'not_restorable' : undefined;
        if (!agreed('restore partner', reply, refusal)) return;
        const affected = deletedWithPartner(model);
        partner.deletedAtMs = null;
        for (const key of affected) key.deleted = null;
        model.actions.push('partner.restored', ...affected.map(() => 'key.restored'));
        return;
      }
      if (!agreed(`${what} partner`, reply, deletedAtMs === null ? undefined : 'already_deleted')) return;
      if (what === 'delete') {
        partner.deletedAtMs = model.nowMs;
        const affected = model.keys.filter((key) => key.row !== 'default' && isLive(key));
        for (const key of affected) key.deleted = { atMs: model.nowMs, reason: 'partner_deleted' };
        model.actions.push('partner.deleted', ...affected.map(() => 'key.deleted'));
      } else if (partner.isSuspended !== (what === 'suspend')) {
        partner.isSuspended = what === 'suspend';
        model.actions.push(what === 'suspend' ? 'partner.suspended' : 'partner.resumed');
      }
    },
    false,
  );

const index = fc.nat(30);
const row = fc.constantFrom('default', 'read', 'write') as fc.Arbitrary<RowName>;
const reason = fc.constantFrom('unused', 'rotated', 'compromised', 'other');
const step = fc.constantFrom(1_000, hourMs, 23 * hourMs, dayMs, 8 * dayMs, 30 * dayMs);
const commands = fc.commands(
  [
    fc.tuple(row, fc.constantFrom(null, null, 2 * hourMs, 9 * dayMs)).map(([where, life]) => create(where, life)),
    fc.tuple(index, fc.constantFrom(undefined, 0, 172_800)).map(([which, end]) => rotate(which, end)),
    fc.tuple(index, fc.boolean()).map(([which, on]) => suspend(which, on)),
    fc.tuple(index, reason).map(([which, why]) => remove(which, why)),
    index.map(restore),
    index.map(restore),
    index.map(reveal),
    fc
      .tuple(index, fc.constantFrom('read', 'write') as fc.Arbitrary<AskedPermission>)
      .map(([which, as]) => verify(which, as)),
    fc
      .tuple(index, fc.constantFrom('read', 'write') as fc.Arbitrary<AskedPermission>)
      .map(([which, as]) => verify(which, as)),
    step.map(advance),
    fc.constant(null).map(purge),
    (fc.constantFrom('suspend', 'resume', 'delete', 'restore') as fc.Arbitrary<'suspend'>).map(changePartner),
  ],
  { maxCommands: 40, size: 'max' },
);

/** An organization with a partner, and one key in each of the partner's rows. */
async function startRun(service: TestService): Promise<{ model: ModelState; real: Real }> {
  const { operator, as } = service;
  const { body: organization } = await operator.post('/v1/organizations', { name: 'Random' });
  const inOrganization = { 'latchkey-organization': organization.id };
  const person = { role: 'admin', scopes: ['read', 'write', 'reveal'], name: 'Ada', email: 'ada@example.com' };
  const admin = as((await operator.post('/v1/access-tokens', person, inOrganization)).body.token);
  const backend = { role: 'verifier', scopes: ['read'], name: 'Backend' };
  const verifier = as((await admin.post('/v1/access-tokens', backend)).body.token);
  const { body: partner } = await admin.post('/v1/partners', { email: 'p@p.example', permissions: ['read', 'write'] });
  const model: ModelState = { nowMs: 0, keys: [], partner: { isSuspended: false, deletedAtMs: null }, actions: [] };
  for (const key of partner.keys) addKey(model, key.permission, key, null);
  model.actions.push('organization.created', 'access_token.created', 'access_token.created');
  model.actions.push('partner.created', 'key.created', 'key.created');
  return { model, real: { service, admin, verifier, partnerId: partner.id } };
}

/**
 * The recorded actions, oldest first. Uses of deleted keys are left out, because they are recorded in the background.
 */
async function recordedActions({ admin }: Real): Promise<string[]> {
  const actions: string[] = [];
  for (let cursor: string | null = ''; cursor !== null; ) {
    const { body }: Reply = await admin.get(`/v1/history?limit=200${cursor === '' ? '' : `&cursor=${cursor}`}`);
    actions.push(...body.data.map(({ action }: Json) => action));
    cursor = body.nextCursor;
  }
  return actions.filter((action) => action !== 'key.used_after_deletion').reverse();
}

t.test(
  `${runs} random sequences of commands: service and model never differ`,
  { timeout: 3_600_000 },
  async (t: Test) => {
    const service = await startService(t);
    let done = 0;
    const doneActions = new Set<string>();
    const property = fc.asyncProperty(commands, async (sequence) => {
      const { model, real } = await startRun(service);
      await fc.asyncModelRun(() => ({ model, real }), sequence);
      same('history', await recordedActions(real), model.actions);
      same('chain', (await real.admin.get('/v1/history/verify')).body.valid, true);
      done += 1;
      for (const action of model.actions) doneActions.add(action);
    });
    await fc.assert(property, { numRuns: runs, endOnFailure: process.env['CI'] === 'true' });
    t.ok(done >= runs);
    t.ok(doneActions.size >= 12, `most commands have happened: ${[...doneActions].sort().join(' ')}`);
  },
);
