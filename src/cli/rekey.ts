import { Command } from 'commander';
import { rekeyAccessTokens } from '../access-tokens/rekey.ts';
import { readConfig } from '../config.ts';
import type { Keyring } from '../crypto/keyring.ts';
import { connect } from '../db/client.ts';
import { createDatabaseClock } from '../db/clock.ts';
import { confirmInstallation } from '../db/installation.ts';
import { countKeyringUse } from '../db/keyring-use.ts';
import { requireCurrentSchema } from '../db/migrator.ts';
import { type RekeyResult, rekey } from '../keys/rekey.ts';
import { enqueueDeliveries } from '../webhooks/enqueue-deliveries.ts';
import { rekeyWebhooks, type WebhookRekeyResult } from '../webhooks/rekey.ts';
import { tellKeyringUse } from './keyring-use.ts';
import { locate } from './locate.ts';
import { counted, print, wrong } from './print.ts';
import { showProgress } from './progress.ts';

const connectTimeoutMs = 10_000;
const queryTimeoutMs = 120_000;

export function rekeyCommand(env: NodeJS.ProcessEnv): Command {
  return new Command('rekey')
    .description(
      "move every key, access token and webhook secret to the keyring's primary entry, beside a running service; may be interrupted and run again",
    )
    .action(async () => {
      const config = readConfig(env);
      const { url, keyring } = await locate(config);
      const client = connect({ url, poolSize: 2, timeoutMs: queryTimeoutMs, connectTimeoutMs });
      try {
        await requireCurrentSchema(client.db);
        await confirmInstallation(client.db, { tokenPrefix: config.TOKEN_PREFIX, keyring });
        const transactor = { db: client.db, keyring, clock: createDatabaseClock(), onAppended: enqueueDeliveries };
        const progress = showProgress('Rekeying');
        const result = await rekey({ transactor, keyring, onProgress: progress.show }).finally(progress.end);
        tellResult(keyring, result);
        const tokens = await rekeyAccessTokens(client.db, keyring);
        for (const id of tokens.rejected) wrong(`${id} was left as it is: ${reasons.row_not_authentic}.`);
        if (tokens.renewed > 0)
          print(`${counted(tokens.renewed, 'access token was', 'access tokens were')} moved to ${keyring.primary.id}.`);
        tellWebhooks(keyring, await rekeyWebhooks({ transactor, keyring }));
        for (const line of tellKeyringUse(keyring, await countKeyringUse(client.db))) print(line);
      } finally {
        await client.close();
      }
    });
}

function tellResult(keyring: Keyring, { renewed, unopened, locked, since }: RekeyResult): void {
  const primary = keyring.primary.id;
  for (const { id, reason } of unopened) wrong(`${id} was left as it is: ${reasons[reason]}.`);
  if (locked > 0)
    wrong(`${counted(locked, 'key was', 'keys were')} locked by somebody else all the time. Run this again.`);
  if (since > 0) {
    wrong(
      `${counted(since, 'key was', 'keys were')} sealed or tagged under another entry while this ran: a service has another primary. ` +
        `Let every one of them start with ${primary} in the first place, then run this again.`,
    );
  }
  print(
    renewed === 0
      ? `Nothing was moved to ${primary}.`
      : `${counted(renewed, 'key was', 'keys were')} moved to ${primary}.`,
  );
}

function tellWebhooks(keyring: Keyring, { renewed, unopened, left }: WebhookRekeyResult): void {
  for (const { id, reason } of unopened) wrong(`${id} was left as it is: ${reasons[reason]}.`);
  const primary = keyring.primary.id;
  if (left > 0) wrong(`The secrets of ${counted(left, 'webhook')} are not under ${primary} yet. Run this again.`);
  if (renewed > 0) print(`The secrets of ${counted(renewed, 'webhook')} were moved to ${primary}.`);
}

const reasons: Record<RekeyResult['unopened'][number]['reason'], string> = {
  unknown_keyring_entry: 'the keyring lacks the entry that it was sealed under',
  not_authentic: 'its sealed value was changed, or belongs to another record',
  row_not_authentic:
    'its row was changed or written without the keyring, or the keyring lacks the entry that it was written under',
};
