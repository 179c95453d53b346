import { isDeepStrictEqual } from 'node:util';
import { type OrganizationContext, rehearse, type Transactor, transact, type Work } from '../database/work.ts';
import type { PartnerId } from '../domain/ids.ts';
import { settingsOf } from './commands.ts';
import { type EntryProblem, givenMemberOf, type ImportEntry, importKeys, type PlacedKey } from './import-commands.ts';
import { findOwnedKeys, findTokenHolders, type OwnedKey } from './import-store.ts';
import type { Key } from './store.ts';

/** What became of an entry. */
export type ImportOutcome =
  | { kind: 'imported' }
  /** A key of this organization has the token, so nothing was changed. */
  | { kind: 'present'; state: PresentState }
  | { kind: 'unfit'; problems: Array<{ path: string; message: string }> };

/** `different`: some setting is not what the entry says. `repeated`: an earlier entry of the same import has the token. */
export type PresentState = 'same' | 'different' | 'deleted' | 'repeated';

/** What the earlier batches of a dry run would have stored. It grows by about 500 bytes for each key. */
interface Rehearsal {
  digests: Set<string>;
  places: Map<PartnerId | null, PlacedKey[]>;
}

interface Deps {
  transactor: Transactor;
  by: OrganizationContext;
  /** Only for a dry run: its earlier batches. */
  rehearsal?: Rehearsal | undefined;
}

interface Item {
  entry: ImportEntry;
  /** In hex. */
  digest: string;
}

/** Imports the entries that fit, in one transaction, and skips those that are there. One outcome for each entry. */
export async function importBatch(
  { transactor, by, rehearsal }: Deps,
  entries: readonly ImportEntry[],
): Promise<ImportOutcome[]> {
  const items = entries.map((entry): Item => ({ entry, digest: entry.token.digest.toString('hex') }));
  const outcomes = await findPresent(transactor, by, items);
  for (const item of items) {
    if (rehearsal?.digests.has(item.digest)) outcomes.set(item, { kind: 'present', state: 'repeated' });
  }
  const missing = items.filter((item) => !outcomes.has(item));
  if (missing.length > 0) {
    const act = (work: Work<OrganizationContext>) => importMissing(work, missing, rehearsal?.places);
    const run = rehearsal === undefined ? transact : rehearse;
    const imported = await run(transactor, by, act);
    for (const [item, outcome] of imported.outcomes) outcomes.set(item, outcome);
    if (rehearsal !== undefined) remember(rehearsal, imported);
  }
  return items.map((item) => {
    const outcome = outcomes.get(item);
    if (outcome === undefined) throw new Error('an entry of an import has no outcome');
    return outcome;
  });
}

/** The entries whose token a key of the organization has, with a deleted key too: it may be restored. */
async function findPresent(
  { db, keyring }: Transactor,
  { organizationId }: OrganizationContext,
  items: readonly Item[],
): Promise<Map<Item, ImportOutcome>> {
  const digests = items.map(({ digest }) => digest);
  const holders = (await findTokenHolders(db, keyring, digests)).filter(
    (holder) => holder.organization_id === organizationId,
  );
  if (holders.length === 0) return new Map();
  const keys = new Map(
    (
      await findOwnedKeys(
        db,
        holders.map(({ id }) => id),
      )
    ).map((key) => [key.id, key]),
  );
  const keyOf = new Map<string, OwnedKey>();
  for (const { digest, id } of holders) {
    const key = keys.get(id);
    // A token of a compromised key may also be that of a live one.
    if (key !== undefined && (key.deleted_at === null || !keyOf.has(digest))) keyOf.set(digest, key);
  }
  const outcomes = new Map<Item, ImportOutcome>();
  for (const item of items) {
    const key = keyOf.get(item.digest);
    if (key !== undefined) outcomes.set(item, { kind: 'present', state: stateOf(key, item.entry) });
  }
  return outcomes;
}

/** Compares only what the entry says. */
function stateOf(key: OwnedKey, { partner, permission, ...entry }: ImportEntry): PresentState {
  if (key.deleted_at !== null) return 'deleted';
  const stored = settingsOf(key);
  const { name, expiresAt, rateLimit, allowedIps, scopes, metadata } = entry;
  const given = { name, expiresAt, rateLimit, allowedIps, scopes, metadata };
  const isSameOwner =
    partner === undefined
      ? key.partner_id === null
      : 'id' in partner
        ? partner.id === key.partner_id
        : partner.externalId === key.external_id;
  const isSame =
    isSameOwner &&
    (permission ?? key.permission) === key.permission &&
    (Object.keys(stored) as Array<keyof typeof stored>).every(
      (member) => given[member] == null || isDeepStrictEqual(given[member], stored[member]),
    );
  return isSame ? 'same' : 'different';
}

interface Imported {
  outcomes: Map<Item, ImportOutcome>;
  keys: Key[];
  digests: string[];
}

async function importMissing(
  work: Work<OrganizationContext>,
  items: readonly Item[],
  rehearsed: Rehearsal['places'] | undefined,
): Promise<Imported> {
  const done: Imported = { outcomes: new Map(), keys: [], digests: [] };
  // Usually one round: a further one only tries entries that repeat the token of one that did not fit.
  for (let pending = items; pending.length > 0; ) {
    const firstOf = new Map<string, Item>();
    for (const item of pending) if (!firstOf.has(item.digest)) firstOf.set(item.digest, item);
    const round = [...firstOf.values()];
    const problems = await importRound(work, round, rehearsed, done);
    for (const item of round) {
      const found = problems.get(item);
      if (found === undefined) done.outcomes.set(item, { kind: 'imported' });
      // Another import was faster.
      else if (found.some(({ keyId }) => keyId !== undefined))
        done.outcomes.set(item, { kind: 'present', state: 'same' });
      else {
        const described = found.map((problem) => ({
          path: givenMemberOf(problem, item.entry),
          message: problem.message,
        }));
        done.outcomes.set(item, { kind: 'unfit', problems: described });
      }
    }
    const stored = new Set(done.digests);
    for (const item of pending) {
      if (stored.has(item.digest) && !done.outcomes.has(item)) {
        done.outcomes.set(item, { kind: 'present', state: 'repeated' });
      }
    }
    pending = pending.filter((item) => !done.outcomes.has(item));
  }
  return done;
}

/** Imports the entries that fit, and returns the problems of the others. */
async function importRound(
  work: Work<OrganizationContext>,
  round: readonly Item[],
  rehearsed: Rehearsal['places'] | undefined,
  done: Imported,
): Promise<Map<Item, EntryProblem[]>> {
  const problems = new Map<Item, EntryProblem[]>();
  const tried = await importKeys(
    work,
    round.map(({ entry }) => entry),
    rehearsed,
  );
  for (const problem of tried.problems) {
    const item = round[problem.index];
    if (item !== undefined) problems.set(item, [...(problems.get(item) ?? []), problem]);
  }
  const fitting = round.filter((item) => !problems.has(item));
  const { keys, problems: unexpected } =
    problems.size === 0
      ? tried
      : await importKeys(
          work,
          fitting.map(({ entry }) => entry),
          rehearsed,
        );
  if (unexpected.length > 0) throw new Error(`an entry that fitted does not fit alone: ${unexpected[0]?.message}`);
  done.keys.push(...keys);
  done.digests.push(...fitting.map(({ digest }) => digest));
  return problems;
}

function remember({ digests, places }: Rehearsal, imported: Imported): void {
  for (const digest of imported.digests) digests.add(digest);
  for (const { id, partner_id, permission, slot, expires_at } of imported.keys) {
    const placed = places.get(partner_id) ?? [];
    placed.push({ id, partner_id, permission, slot, expires_at });
    places.set(partner_id, placed);
  }
}
