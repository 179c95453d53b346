import type { GivenDeleteReason } from '../database/tables/api-keys.ts';
import type { OrganizationContext, Work } from '../database/work.ts';
import type { KeyId } from '../domain/ids.ts';
import { deleteKeys, setKeysSuspended } from './commands.ts';
import { type BulkAction, type SkipCode, whySkipped } from './policy.ts';
import { type KeySearch, lockMatching } from './search.ts';
import { lockKeys } from './store.ts';

/** What a bulk request does with each key. */
export type BulkChange =
  | { action: 'suspend'; reason: string | null }
  | { action: 'resume' }
  | { action: 'delete'; reason: GivenDeleteReason };

export interface BulkRequest {
  change: BulkChange;
  /** The ids that the request names, or those that its search has found. */
  keyIds: readonly KeyId[];
  /** Keys that no longer match it are left out. */
  search: KeySearch | undefined;
  dryRun: boolean;
}

export interface BulkResult {
  action: BulkAction;
  dryRun: boolean;
  /** The number of keys of this organization that the request selects. */
  matched: number;
  changed: KeyId[];
  skipped: Array<{ keyId: KeyId; code: SkipCode }>;
}

/**
 * Changes many keys in one transaction, with one event for each. Locks them in the order of their ids, so that two bulk
 * requests never wait for each other.
 */
export async function changeKeys(
  work: Work<OrganizationContext>,
  { change, keyIds, search, dryRun }: BulkRequest,
): Promise<BulkResult> {
  const { organizationId } = work.by;
  const selected = search === undefined ? keyIds : await lockMatching(work.tx, { ...search, now: work.now }, keyIds);
  const keys = await lockKeys(work.tx, organizationId, selected);
  const found = new Set(keys.map(({ id }) => id));
  const skipped: BulkResult['skipped'] = selected
    .filter((id) => !found.has(id))
    .map((keyId) => ({ keyId, code: 'not_found' }));
  const toChange = keys.filter((key) => {
    const code = whySkipped(key, change);
    if (code !== undefined) skipped.push({ keyId: key.id, code });
    return code === undefined;
  });
  if (!dryRun && toChange.length > 0) {
    if (change.action === 'delete') await deleteKeys(work, toChange, change.reason);
    else if (change.action === 'resume') await setKeysSuspended(work, toChange, { isSuspended: false });
    else await setKeysSuspended(work, toChange, { isSuspended: true, reason: change.reason });
  }
  const { action } = change;
  return { action, dryRun, matched: keys.length, changed: toChange.map(({ id }) => id), skipped };
}
