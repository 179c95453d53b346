import fc from 'fast-check';
import type { Test } from 'tap';
import { expireClaims } from '../src/claims/jobs.ts';
import { purgeDeletedKeys } from '../src/keys/purge-job.ts';
import { enqueueDeliveries } from '../src/webhooks/enqueue-deliveries.ts';
import { type Client, type Json, type Reply, startService, type TestService } from './support/app.ts';
import { foreignToken, sha256Of } from './support/imports.ts';
import {
  type AskedPermission,
  addKey,
  type BulkAction,
  bulkActions,
  claimStatusOf,
  dayMs,
  deletedWithPartner,
  deleteKeys,
  dueForPurge,
  endClaims,
  endClaimsOf,
  flawsOfImport,
  hourMs,
  isLive,
  keyOfToken,
  liveIn,
  type ModelClaim,
  type ModelKey,
  type ModelState,
  type Refusal,
  type RowName,
  refusesChange,
  refusesDeletion,
  refusesNewKey,
  refusesRestore,
  refusesReveal,
  refusesRotation,
  retentionMs,
  statusOf,
  undoWindowMs,
  verdictOf,
  whySkipped,
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
      // Time passes, so that of two expired keys it is known which one expired first.
      model.nowMs += 1;
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

/** Adds a key that the service has created. @param body of its reply; null for the plaintext that only a claim holds */
function addCreated(model: ModelState, row: RowName, body: Json, expiresAtMs: number | null): ModelKey {
  const key = addKey(model, { id: body.id, plaintext: body.key ?? null, isSealed: true, row, expiresAtMs });
  model.actions.push('key.created');
  return key;
}

const timeIn = (model: ModelState, lifeMs: number | null) => (lifeMs === null ? null : model.nowMs + lifeMs);

/** The members of a request for a new key. */
function newKeyInput({ partnerId, service }: Real, row: RowName, lifeMs: number | null) {
  const expiresAt = lifeMs === null ? null : new Date(service.clock.nowMs() + lifeMs).toISOString();
  return { ...(row === 'default' ? {} : { partnerId, permission: row }), expiresAt };
}

const create = (row: RowName, lifeMs: number | null) =>
  command(
    `create(${row}, ${lifeMs})`,
    async (model, real) => {
      const reply = await real.admin.post('/v1/keys', newKeyInput(real, row, lifeMs));
      if (!agreed('create', reply, refusesNewKey(model, row))) return;
      addCreated(model, row, reply.body, timeIn(model, lifeMs));
    },
    false,
  );

/** @param body the new key of the reply */
function rotateIn(model: ModelState, old: ModelKey, body: Json, endSeconds: number | undefined): ModelKey {
  const added = addCreated(model, old.row, body, null);
  model.actions.push('key.rotated');
  const endMs = endSeconds === undefined ? Number.POSITIVE_INFINITY : model.nowMs + endSeconds * 1_000;
  if (endMs < (old.expiresAtMs ?? Number.POSITIVE_INFINITY)) old.expiresAtMs = endMs;
  return added;
}

const rotate = (index: number, endSeconds: number | undefined) =>
  command(`rotate(${index}, ${endSeconds})`, async (model, { admin }) => {
    const old = pick(model, index);
    const reply = await admin.post(`/v1/keys/${old.id}/rotate`, { expireOldAfterSeconds: endSeconds });
    if (agreed('rotate', reply, refusesRotation(model, old))) rotateIn(model, old, reply.body, endSeconds);
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
    deleteKeys(model, [key], reason);
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
    if (!agreed('reveal', reply, refusesReveal(key))) return;
    key.plaintext ??= reply.body.key;
    same('plaintext', reply.body.key, key.plaintext);
    model.actions.push('key.revealed');
  });

const verify = (index: number, permission: AskedPermission) =>
  command(`verify(${index}, ${permission})`, async (model, { verifier }) => {
    const key = keyOfToken(model, pick(model, index));
    if (key.plaintext === null) return;
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

function transactorOf({ client, keyring, clock, verification }: TestService) {
  return {
    db: client.db,
    keyring,
    clock,
    onAppended: enqueueDeliveries,
    onChanged: verification.records.invalidate,
  };
}

const purge = () =>
  command('purge()', async (model, { service }) => {
    await purgeDeletedKeys({ transactor: transactorOf(service), retentionSeconds: retentionMs / 1_000 });
    for (const key of dueForPurge(model)) {
      key.isPurged = true;
      model.actions.push('key.purged');
    }
  });

interface EntryToImport {
  row: RowName;
  lifeMs: number | null;
  /** The imported key whose token is imported again; undefined for a new token. */
  again: number | undefined;
  byHash: boolean;
}

const importKeys = (given: readonly EntryToImport[], dryRun: boolean) =>
  command(
    `import(${JSON.stringify(given)}, ${dryRun})`,
    async (model, real) => {
      const known = model.keys.flatMap(({ plaintext }) => (plaintext?.startsWith('acme') === true ? [plaintext] : []));
      const planned = given.map(({ row, lifeMs, again, byHash }) => {
        const token = (again === undefined ? undefined : known[again % known.length]) ?? foreignToken();
        return { row, lifeMs, token, byHash, expiresAtMs: timeIn(model, lifeMs) };
      });
      const entries = planned.map(({ row, lifeMs, token, byHash }) => ({
        ...newKeyInput(real, row, lifeMs),
        ...(byHash ? { sha256: sha256Of(token) } : { plaintext: token }),
      }));
      const reply = await real.admin.post('/v1/keys/import', { entries, dryRun });
      const flaws = new Set(flawsOfImport(model, planned));
      if (!agreed('import', reply, flaws.size > 1 ? 'validation_failed' : [...flaws][0]) || dryRun) return;
      for (const [index, { row, token, byHash, expiresAtMs }] of planned.entries()) {
        addKey(model, { id: reply.body.data[index].id, plaintext: token, isSealed: !byHash, row, expiresAtMs });
      }
      model.actions.push(...planned.map(() => 'key.imported'));
    },
    false,
  );

/** Selects keys by their positions, or as a filter and in the model. */
type Selection = number[] | { filter: (real: Real) => Json; matches: (model: ModelState, key: ModelKey) => boolean };

const inRow = (row: RowName): Selection => ({
  filter: ({ partnerId }) => (row === 'default' ? { partnerId: 'default' } : { partnerId, permission: row }),
  matches: (_, key) => isLive(key) && key.row === row,
});

const withStatus = (status: string): Selection => ({
  filter: () => ({ status }),
  matches: (model, key) => !key.isPurged && (isLive(key) ? statusOf(model, key) : 'deleted') === status,
});

const bulk = (action: BulkAction, reason: string, selection: Selection, dryRun: boolean) =>
  command(`bulk(${action}, ${reason}, ${JSON.stringify(selection)}, ${dryRun})`, async (model, real) => {
    const selected = Array.isArray(selection)
      ? [...new Set(selection.map((index) => pick(model, index)))]
      : model.keys.filter((key) => selection.matches(model, key));
    const { body } = await real.admin.post('/v1/keys/bulk', {
      action,
      dryRun,
      ...(action === 'resume' ? {} : { reason }),
      ...(Array.isArray(selection) ? { keyIds: selected.map(({ id }) => id) } : { filter: selection.filter(real) }),
    });
    const changed = selected.filter((key) => whySkipped(key, action, reason) === undefined);
    const skipped = selected.filter((key) => !changed.includes(key));
    same('matched', body.matched, selected.filter(({ isPurged }) => !isPurged).length);
    same('changed', body.changed.sort(), changed.map(({ id }) => id).sort());
    same(
      'skipped',
      body.skipped.map(({ keyId, code }: Json) => `${keyId} ${code}`).sort(),
      skipped.map((key) => `${key.id} ${whySkipped(key, action, reason)}`).sort(),
    );
    if (dryRun) return;
    if (action === 'delete') return deleteKeys(model, changed, reason);
    for (const key of changed) {
      key.isSuspended = action === 'suspend';
      model.actions.push(key.isSuspended ? 'key.suspended' : 'key.resumed');
    }
  });

function addClaim(model: ModelState, key: ModelKey, { id, code }: Json, ttlSeconds: number): void {
  endClaimsOf(model, [key]);
  model.claims.push({ id, code, key, expiresAtMs: model.nowMs + ttlSeconds * 1_000, end: null });
  model.actions.push('claim.created');
}

const claimNewKey = (row: RowName, lifeMs: number | null, ttlSeconds: number) =>
  command(
    `claimNewKey(${row}, ${lifeMs}, ${ttlSeconds})`,
    async (model, real) => {
      const reply = await real.admin.post('/v1/claims', { newKey: newKeyInput(real, row, lifeMs), ttlSeconds });
      if (!agreed('claim', reply, refusesNewKey(model, row))) return;
      addClaim(model, addCreated(model, row, reply.body.key, timeIn(model, lifeMs)), reply.body, ttlSeconds);
    },
    false,
  );

const claimRotation = (index: number, endSeconds: number | undefined, ttlSeconds: number) =>
  command(`claimRotation(${index}, ${endSeconds}, ${ttlSeconds})`, async (model, { admin }) => {
    const old = pick(model, index);
    const asked = { keyId: old.id, expireOldAfterSeconds: endSeconds };
    const reply = await admin.post('/v1/claims', { rotate: asked, ttlSeconds });
    if (!agreed('claim', reply, refusesRotation(model, old))) return;
    addClaim(model, rotateIn(model, old, reply.body.key, endSeconds), reply.body, ttlSeconds);
  });

const claimKey = (index: number, ttlSeconds: number) =>
  command(`claimKey(${index}, ${ttlSeconds})`, async (model, { admin }) => {
    const key = pick(model, index);
    const reply = await admin.post('/v1/claims', { keyId: key.id, ttlSeconds });
    if (agreed('claim', reply, refusesReveal(key))) addClaim(model, key, reply.body, ttlSeconds);
  });

/** A command on one of the claims. */
const onClaim = (
  name: string,
  index: number,
  run: (model: ModelState, claim: ModelClaim, real: Real) => Promise<void>,
) =>
  command(`${name}(${index})`, async (model, real) => {
    const claim = model.claims[index % model.claims.length];
    if (claim !== undefined) await run(model, claim, real);
  });

const redeem = (index: number) =>
  onClaim('redeem', index, async (model, claim, { service }) => {
    const reply = await service.as('').post('/v1/claims/redeem', { code: claim.code });
    if (!agreed('redeem', reply, claimStatusOf(model, claim) === 'pending' ? undefined : 'claim_gone')) return;
    claim.end = 'redeemed';
    claim.key.plaintext ??= reply.body.key;
    same('plaintext', reply.body.key, claim.key.plaintext);
    model.actions.push('key.claimed');
  });

const cancel = (index: number) =>
  onClaim('cancel', index, async (model, claim, { admin }) => {
    const reply = await admin.delete(`/v1/claims/${claim.id}`);
    if (!agreed('cancel', reply, claimStatusOf(model, claim) === 'pending' ? undefined : 'conflict')) return;
    endClaims(model, [claim]);
  });

const endExpiredClaims = () =>
  command('endExpiredClaims()', async (model, { service }) => {
    await expireClaims({ transactor: transactorOf(service) });
    endClaims(
      model,
      model.claims.filter((claim) => claimStatusOf(model, claim) === 'expired'),
    );
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
        model.actions.push('partner.deleted');
        const affected = model.keys.filter((key) => key.row !== 'default' && isLive(key));
        deleteKeys(model, affected, 'partner_deleted');
      } else if (partner.isSuspended !== (what === 'suspend')) {
        partner.isSuspended = what === 'suspend';
        model.actions.push(what === 'suspend' ? 'partner.suspended' : 'partner.resumed');
      }
    },
    false,
  );

const index = fc.nat(30);
const row = fc.constantFrom('default', 'read', 'write') as fc.Arbitrary<RowName>;
const life = fc.constantFrom(null, null, 2 * hourMs, 9 * dayMs);
const end = fc.constantFrom(undefined, 0, 172_800);
const ttl = fc.constantFrom(3_600, 259_200);
const isDryRun = fc.constantFrom(false, false, true);
const reason = fc.constantFrom('unused', 'rotated', 'compromised', 'other');
const asked = fc.constantFrom('read', 'write') as fc.Arbitrary<AskedPermission>;
const step = fc.constantFrom(1_000, hourMs, 23 * hourMs, dayMs, 8 * dayMs, 30 * dayMs);
const partnerChange = fc.constantFrom('suspend', 'resume', 'delete', 'restore') as fc.Arbitrary<'suspend'>;
const entry = fc.record({
  row,
  lifeMs: life,
  again: fc.option(index, { freq: 2, nil: undefined }),
  byHash: fc.boolean(),
});
const selection = fc.oneof(
  fc.array(index, { minLength: 1, maxLength: 4 }),
  row.map(inRow),
  fc.constantFrom('active', 'suspended', 'expired', 'deleted').map(withStatus),
);
const commands = fc.commands(
  [
    fc.tuple(row, life).map((given) => create(...given)),
    fc.tuple(index, end).map((given) => rotate(...given)),
    fc.tuple(index, fc.boolean()).map((given) => suspend(...given)),
    fc.tuple(index, reason).map((given) => remove(...given)),
    index.map(restore),
    index.map(restore),
    index.map(reveal),
    fc.tuple(index, asked).map((given) => verify(...given)),
    fc.tuple(index, asked).map((given) => verify(...given)),
    step.map(advance),
    step.map(advance),
    fc.constant(null).map(purge),
    partnerChange.map(changePartner),
    fc.tuple(fc.array(entry, { minLength: 1, maxLength: 3 }), isDryRun).map((given) => importKeys(...given)),
    fc.tuple(fc.constantFrom(...bulkActions), reason, selection, isDryRun).map((given) => bulk(...given)),
    fc.tuple(row, life, ttl).map((given) => claimNewKey(...given)),
    fc.tuple(index, end, ttl).map((given) => claimRotation(...given)),
    fc.tuple(index, ttl).map((given) => claimKey(...given)),
    index.map(redeem),
    index.map(redeem),
    index.map(cancel),
    fc.constant(null).map(endExpiredClaims),
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
  const actions = ['organization.created', 'access_token.created', 'access_token.created', 'partner.created'];
  const model: ModelState = {
    nowMs: 0,
    keys: [],
    claims: [],
    partner: { isSuspended: false, deletedAtMs: null },
    actions,
  };
  for (const key of partner.keys) addCreated(model, key.permission, key, null);
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

async function requireSameClaims(model: ModelState, { admin }: Real): Promise<void> {
  const { body } = await admin.get('/v1/claims?limit=200');
  const found = body.data.map(({ id, status }: Json) => `${id} ${status}`);
  same(
    'claims',
    found.reverse(),
    model.claims.map((claim) => `${claim.id} ${claimStatusOf(model, claim)}`),
  );
}

const newEntry = (row: RowName): EntryToImport => ({ row, lifeMs: null, again: undefined, byHash: true });

/** Has each of the required actions. The partner's keys are the first two, one for each row. */
const everyCommand = [
  ...[suspend(0, true), suspend(0, false), rotate(0, undefined), reveal(0), remove(0, 'unused'), restore(0)],
  ...[create('default', 2 * hourMs), claimNewKey('default', null, 3_600), redeem(0)],
  ...[claimKey(4, 3_600), cancel(1), claimKey(4, 3_600), advance(2 * hourMs), endExpiredClaims()],
  ...[create('default', null), importKeys([newEntry('write')], false)],
  ...(['suspend', 'resume', 'delete', 'restore'] as const).map((what) => changePartner(what)),
  ...[bulk('suspend', 'other', [0, 4], false), bulk('delete', 'unused', inRow('default'), false)],
  ...[advance(30 * dayMs), purge(), verify(5, 'read')],
  // Of two expired keys, the first that expired is replaced.
  ...[create('default', 9 * dayMs), create('default', 2 * hourMs), advance(10 * dayMs), create('default', null)],
  importKeys([newEntry('default'), newEntry('default')], false),
];

const requiredActions = [
  ...['key.created', 'key.rotated', 'key.suspended', 'key.resumed', 'key.deleted', 'key.restored', 'key.revealed'],
  ...['key.purged', 'key.imported', 'key.claimed', 'claim.created', 'claim.cancelled', 'claim.expired'],
  ...['partner.suspended', 'partner.resumed', 'partner.deleted', 'partner.restored'],
];

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
      await requireSameClaims(model, real);
      same('history', await recordedActions(real), model.actions);
      same('chain', (await real.admin.get('/v1/history/verify')).body.valid, true);
      done += 1;
      for (const action of model.actions) doneActions.add(action);
    });
    await fc.assert(property, {
      numRuns: runs,
      examples: [[everyCommand]],
      endOnFailure: process.env['CI'] === 'true',
    });
    t.ok(done >= runs);
    t.same(
      requiredActions.filter((action) => !doneActions.has(action)),
      [],
      'every command has happened',
    );
  },
);
