import { setTimeout as delay } from 'node:timers/promises';
import type { Actor } from '../core/actor.ts';
import type { Happening } from '../core/events.ts';
import type { WebhookId } from '../core/ids.ts';
import type { Keyring } from '../crypto/keyring.ts';
import { SealBroken } from '../crypto/seal.ts';
import { type Transactor, transact } from '../db/work.ts';
import { record } from '../history/record.ts';
import { reseal, type SealedSecrets, type SecretColumns } from './mint.ts';
import { countStaleWebhooks, lockStaleWebhooks, replaceSeals } from './rekey-store.ts';

export interface WebhookRekeyResult {
  /** Webhooks whose secrets were sealed anew. */
  renewed: number;
  /** Webhooks that stay as they are, because a secret of theirs does not open. */
  unopened: Array<{ id: WebhookId; reason: SealBroken['reason'] }>;
  /** Left for the next run: locked by somebody else all the time, or made under another entry while this ran. */
  left: number;
}

const webhooksInBatch = 100;
const lookAgainAfterMs = 250;
const lockedAllowedMs = 10_000;

const by = {
  actor: { type: 'system', id: 'rekey', name: 'rekey', email: null } satisfies Actor,
  organizationId: null,
  request: null,
};

/** Seals the secrets of all webhooks anew under the keyring's primary entry, as `rekey` does it with keys. */
export async function rekeyWebhooks(deps: { transactor: Transactor; keyring: Keyring }): Promise<WebhookRekeyResult> {
  const { transactor, keyring } = deps;
  const primary = keyring.primary.id;
  const total = await countStaleWebhooks(transactor.db, primary);
  if (total === 0) return { renewed: 0, unopened: [], left: 0 };
  await recordAlone(transactor, { action: 'keyring.rekey_started', details: { primary, webhookSecrets: total } });
  let renewed = 0;
  for (let waitedMs = 0; ; waitedMs += lookAgainAfterMs) {
    const pass = await takePass(transactor, keyring);
    renewed += pass.renewed;
    const left = (await countStaleWebhooks(transactor.db, primary)) - pass.unopened.length;
    if (left <= 0 || waitedMs >= lockedAllowedMs) {
      const { unopened } = pass;
      const details = { primary, webhookSecrets: renewed, unopened: unopened.length, locked: Math.max(0, left) };
      await recordAlone(transactor, { action: 'keyring.rekeyed', details });
      return { renewed, unopened, left: Math.max(0, left) };
    }
    await delay(lookAgainAfterMs);
  }
}

async function recordAlone(transactor: Transactor, happening: Happening): Promise<void> {
  await transact(transactor, by, async (work) => record(work, happening));
}

/** Goes over all of them once, but for those that are locked at that moment. */
async function takePass(transactor: Transactor, keyring: Keyring): Promise<Omit<WebhookRekeyResult, 'left'>> {
  const unopened: WebhookRekeyResult['unopened'] = [];
  let renewed = 0;
  for (let after: string | undefined = ''; after !== undefined; ) {
    const batch: { lastId?: WebhookId | undefined; unopened: WebhookRekeyResult['unopened']; renewed: number } =
      await transact(transactor, by, async ({ tx }) => {
        const stale = await lockStaleWebhooks(tx, keyring.primary.id, { after: after ?? '', limit: webhooksInBatch });
        const broken: WebhookRekeyResult['unopened'] = [];
        for (const webhook of stale) {
          const columns = renew(keyring, webhook);
          if ('reason' in columns) broken.push({ id: webhook.id, reason: columns.reason });
          else await replaceSeals(tx, webhook.id, columns);
        }
        return { lastId: stale.at(-1)?.id, unopened: broken, renewed: stale.length - broken.length };
      });
    after = batch.lastId;
    unopened.push(...batch.unopened);
    renewed += batch.renewed;
  }
  return { renewed, unopened };
}

function renew(keyring: Keyring, webhook: SealedSecrets): SecretColumns | { reason: SealBroken['reason'] } {
  try {
    return reseal(keyring, webhook);
  } catch (error) {
    if (error instanceof SealBroken) return { reason: error.reason };
    throw error;
  }
}
