import { type ChangeNotice, notifyChanges } from '../database/change-feed.ts';
import type { OrganizationContext, Work } from '../database/work.ts';
import { Problem, type ProblemCode } from '../domain/errors.ts';
import type { KeyId, PartnerId } from '../domain/ids.ts';
import type { Permission } from '../domain/permissions.ts';
import { record } from '../history/record.ts';
import { lockOrganization, lockOrganizationShared } from '../organizations/store.ts';
import { findPartnerIds, lockPartners, type Partner } from '../partners/store.ts';
import { deleteKeys, describe, type NewKeyRequest, toColumns, toSettings } from './commands.ts';
import { findTokenHolders, hasImportedKeys, lockImports, type TokenHolder } from './import-store.ts';
import { type ImportedToken, importColumns } from './imported-token.ts';
import { expiryFor, type LifetimeRules } from './lifetime-policy.ts';
import { permissionOfNewKey, placeIn } from './policy.ts';
import { insertKeys, type Key, lockLiveKeysOfOwners, type NewKey } from './store.ts';

/** A key to import. Without a partner it belongs to the organization's default row. */
export interface ImportEntry extends Omit<NewKeyRequest, 'partnerId'> {
  partner?: { id: string } | { externalId: string } | undefined;
  token: ImportedToken;
}

/** Why an entry cannot be imported. */
export interface EntryProblem {
  /** The entry's position in the list. */
  index: number;
  /** The member of the entry that does not fit. */
  member: 'partnerId' | 'partnerExternalId' | 'permission' | 'expiresAt' | 'token';
  code: ProblemCode;
  message: string;
  /** For `key_exists`: the key that has the token, if it is one of this organization. */
  keyId?: KeyId | undefined;
}

/** The member of the given entry that a problem is about, as its author names it. */
export function givenMemberOf({ member }: Pick<EntryProblem, 'member'>, { token }: Pick<ImportEntry, 'token'>): string {
  if (member !== 'token') return member;
  return token.plaintext === null ? 'sha256' : 'plaintext';
}

/** Either all keys, in the order of the entries, or the problems of all entries that do not fit. */
export interface ImportResult {
  keys: Key[];
  problems: EntryProblem[];
}

/** The most entries of one import: all of them are one transaction. */
export const maxImportEntries = 500;

/** A key that takes a place of a row. */
export type PlacedKey = Pick<Key, 'id' | 'partner_id' | 'permission' | 'slot' | 'expires_at'>;

/** Keys by their owner; null is the organization. */
export type PlacesOfOwners = ReadonlyMap<PartnerId | null, readonly PlacedKey[]>;

/**
 * Imports keys, all or none. With a problem nothing is written, so the rest can be imported in the same transaction.
 * @param rehearsed keys that count as stored already, in a rehearsal of several steps
 */
export async function importKeys(
  work: Work<OrganizationContext>,
  entries: readonly ImportEntry[],
  rehearsed?: PlacesOfOwners,
): Promise<ImportResult> {
  if (entries.length === 0) return { keys: [], problems: [] };
  const owners = await lockOwners(work, entries);
  await lockImports(work.tx);
  const stored = await lockLiveKeysOfOwners(work.tx, work.by.organizationId, owners.ids);
  const earlier = owners.ids.flatMap((id) => rehearsed?.get(id) ?? []);
  const places = new Places(stored, earlier, work.now);
  const tokens = await checkTokens(work, entries);
  const problems: EntryProblem[] = [];
  const keys: NewKey[] = [];
  for (const [index, entry] of entries.entries()) {
    const found = planKey(work, entry, {
      owner: owners.of[index],
      problem: tokens.problems.get(index),
      places,
      rules: owners.rules,
    });
    if ('key' in found) {
      keys.push({
        ...importColumns(work.keyring, work.by.organizationId, entry.token, owners.mayBeRevealed),
        ...found.key,
      });
    } else problems.push(...found.problems.map((problem) => ({ index, ...problem })));
  }
  if (problems.length > 0) return { keys: [], problems };
  await deleteKeys(work, places.replaced, 'expired');
  await announce(work, entries, tokens.compromised);
  const imported = await insertKeys(work, keys);
  for (const [index, key] of imported.entries()) {
    const entry = entries[index];
    if (entry === undefined) throw new Error('more keys were inserted than entries given');
    record(work, {
      action: 'key.imported',
      keyId: key.id,
      partnerId: key.partner_id,
      details: {
        permission: key.permission,
        ...describe({ ...toSettings(entry), expiresAt: key.expires_at }),
        plaintextGiven: entry.token.plaintext !== null,
      },
    });
  }
  return { keys: imported, problems };
}

type Member = Omit<EntryProblem, 'index'>;

type OwnerOrProblem = { partner: Partner | null } | { problem: Member };

interface Owners {
  /** One for each entry. */
  of: OwnerOrProblem[];
  /** The owners of all rows; null is the organization. */
  ids: Array<PartnerId | null>;
  mayBeRevealed: boolean;
  rules: LifetimeRules;
}

/** Locks the organization first, like every command that adds a key, then the partners in the order of their ids. */
async function lockOwners(work: Work<OrganizationContext>, entries: readonly ImportEntry[]): Promise<Owners> {
  const { tx, by } = work;
  const usesDefaultRow = entries.some(({ partner }) => partner === undefined);
  const lock = usesDefaultRow ? lockOrganization : lockOrganizationShared;
  const organization = await lock(tx, by.organizationId);
  const named = entries.flatMap(({ partner }) => partner ?? []);
  const ids = new Set(named.flatMap((partner) => ('id' in partner ? [partner.id] : [])));
  const externalIds = new Set(named.flatMap((partner) => ('externalId' in partner ? [partner.externalId] : [])));
  for (const id of await findPartnerIds(tx, by.organizationId, [...externalIds])) ids.add(id);
  const locked = await lockPartners(tx, by.organizationId, [...ids]);
  const byId = new Map<string, Partner>(locked.map((partner) => [partner.id, partner]));
  // Read after the lock: an external id may have moved to another partner meanwhile.
  const byExternalId = new Map(
    locked.filter(({ deleted_at }) => deleted_at === null).map((partner) => [partner.external_id, partner]),
  );
  const of = entries.map(({ partner: wanted }): OwnerOrProblem => {
    if (wanted === undefined) return { partner: null };
    const member = 'id' in wanted ? 'partnerId' : 'partnerExternalId';
    const partner = 'id' in wanted ? byId.get(wanted.id) : byExternalId.get(wanted.externalId);
    if (partner === undefined) {
      return { problem: { member, code: 'not_found', message: 'there is no such partner in this organization' } };
    }
    if (partner.deleted_at !== null) {
      const message = `the partner was deleted at ${partner.deleted_at.toISOString()}`;
      return { problem: { member, code: 'already_deleted', message } };
    }
    return { partner };
  });
  return {
    of,
    ids: [...(usesDefaultRow ? [null] : []), ...locked.map(({ id }) => id)],
    mayBeRevealed: organization.key_reveal === 'allowed',
    rules: organization,
  };
}

interface CheckedTokens {
  /** By the entry's position. */
  problems: Map<number, Member>;
  /** Compromised keys whose tokens are imported again. */
  compromised: TokenHolder[];
}

/** A token must be new: neither another live or restorable key nor an earlier entry may have it. */
async function checkTokens(work: Work<OrganizationContext>, entries: readonly ImportEntry[]): Promise<CheckedTokens> {
  const digests = entries.map(({ token }) => token.digest.toString('hex'));
  const holders = await findTokenHolders(work.tx, work.keyring, digests);
  const compromised = holders.filter(({ delete_reason }) => delete_reason === 'compromised');
  const holderOf = new Map(
    holders.filter(({ delete_reason }) => delete_reason !== 'compromised').map((key) => [key.digest, key]),
  );
  const problems = new Map<number, Member>();
  const seen = new Map<string, number>();
  for (const [index, digest] of digests.entries()) {
    const holder = holderOf.get(digest);
    const first = seen.get(digest);
    if (first !== undefined) {
      const message = `has the same token as the entry at position ${first}`;
      problems.set(index, { member: 'token', code: 'validation_failed', message });
    } else if (holder !== undefined) {
      const keyId = holder.organization_id === work.by.organizationId ? holder.id : undefined;
      const message = `key ${keyId ?? 'of another organization'} already has this token`;
      problems.set(index, { member: 'token', code: 'key_exists', message, keyId });
    }
    if (first === undefined) seen.set(digest, index);
  }
  return { problems, compromised };
}

type PlannedKey = Omit<NewKey, keyof ReturnType<typeof importColumns>>;

interface Plan {
  owner: OwnerOrProblem | undefined;
  problem: Member | undefined;
  places: Places;
  rules: LifetimeRules;
}

/** The row of a new key without its token, or everything that is wrong with the entry. */
function planKey(
  work: Work<OrganizationContext>,
  entry: ImportEntry,
  { owner, problem, places, rules }: Plan,
): { key: PlannedKey } | { problems: Member[] } {
  const problems = problem === undefined ? [] : [problem];
  const settings = toSettings(entry);
  const attempt = <Result>(member: Member['member'], decide: () => Result): Result | undefined => {
    try {
      return decide();
    } catch (error) {
      if (!(error instanceof Problem)) throw error;
      problems.push({ member, code: error.code, message: error.errors?.[0]?.message ?? error.detail });
      return undefined;
    }
  };
  // The route names the entry in the path.
  const expiresAt = attempt('expiresAt', () =>
    expiryFor(settings.expiresAt, { rules, now: work.now, path: 'expiresAt' }),
  );
  if (owner === undefined || 'problem' in owner) {
    return { problems: [...problems, ...(owner === undefined ? [] : [owner.problem])] };
  }
  const { partner } = owner;
  const permission = attempt('permission', () => permissionOfNewKey(partner?.permissions ?? null, entry.permission));
  // An entry that does not fit takes no place from the others.
  if (permission === undefined || expiresAt === undefined || problems.length > 0) return { problems };
  const partnerId: PartnerId | null = partner?.id ?? null;
  const slot = attempt(partner === null ? 'permission' : memberOf(entry), () => places.take(partnerId, permission));
  if (slot === undefined) return { problems };
  return {
    key: {
      organization_id: work.by.organizationId,
      partner_id: partnerId,
      permission,
      slot,
      origin: 'imported',
      ...toColumns({ ...settings, expiresAt }),
      replaces_key_id: null,
      limit_bucket_id: null,
      created_at: work.now,
      created_by: work.by.actor,
    },
  };
}

function memberOf({ partner }: ImportEntry): 'partnerId' | 'partnerExternalId' {
  return partner !== undefined && 'externalId' in partner ? 'partnerExternalId' : 'partnerId';
}

/** The places of rows, with those that earlier entries take. */
class Places {
  /** Expired keys whose places are taken. */
  readonly replaced: Key[] = [];
  readonly #rows = new Map<string, Occupant[]>();
  readonly #now: Date;

  constructor(stored: readonly Key[], rehearsed: readonly PlacedKey[], now: Date) {
    this.#now = now;
    for (const key of stored) this.#rowOf(key.partner_id, key.permission).push({ ...key, key });
    for (const key of rehearsed) this.#rowOf(key.partner_id, key.permission).push({ ...key, key: undefined });
  }

  /** @throws Problem `row_full` */
  take(partnerId: PartnerId | null, permission: Permission): 1 | 2 {
    const row = this.#rowOf(partnerId, permission);
    const { slot, replaced } = placeIn(row, this.#now);
    if (replaced !== undefined) row.splice(row.indexOf(replaced), 1);
    if (replaced?.key !== undefined) this.replaced.push(replaced.key);
    row.push({ id: 'an earlier entry', slot, expires_at: null, key: undefined });
    return slot;
  }

  #rowOf(partnerId: PartnerId | null, permission: Permission): Occupant[] {
    const name = `${partnerId}/${permission}`;
    const row = this.#rows.get(name) ?? [];
    this.#rows.set(name, row);
    return row;
  }
}

interface Occupant extends Pick<Key, 'slot' | 'expires_at'> {
  id: string;
  /** Undefined: not stored yet. */
  key: Key | undefined;
}

/**
 * Invalidates what replicas remember: that a token is unknown (this replica only), that it belongs to a compromised
 * key, and that the organization has no imported keys. Inserting a row notifies no replica by itself.
 */
async function announce(
  { tx, by, changed }: Work<OrganizationContext>,
  entries: readonly ImportEntry[],
  compromised: CheckedTokens['compromised'],
): Promise<void> {
  for (const { token } of entries) changed.add(token.digest.toString('latin1'));
  const { organizationId } = by;
  const notices: ChangeNotice[] = compromised.map((key) => ({ id: key.id, organizationId: key.organization_id }));
  if (!(await hasImportedKeys(tx, organizationId))) notices.push({ id: organizationId, organizationId });
  for (const { id } of notices) changed.add(id);
  await notifyChanges(tx, notices);
}
