import { Command } from 'commander';
import { readConfig } from '../config/config.ts';
import type { Keyring } from '../crypto/keyring.ts';
import { countKeyringUse } from '../database/keyring-use.ts';
import type { Transactor } from '../database/work.ts';
import { accessTokens } from '../rekey/access-tokens.ts';
import { archives } from '../rekey/archives.ts';
import { claims } from '../rekey/claims.ts';
import { keys } from '../rekey/keys.ts';
import { type RekeyResult, rekey, type Unopened } from '../rekey/rekey.ts';
import { webhooks } from '../rekey/webhooks.ts';
import { describeKeyringUse } from './keyring-use.ts';
import { locate } from './locate.ts';
import { counted, print, wrong } from './print.ts';
import { showProgress } from './progress.ts';
import { withInstallation } from './with-installation.ts';

const queryTimeoutMs = 120_000;

export function rekeyCommand(env: NodeJS.ProcessEnv): Command {
  return new Command('rekey')
    .description(
      "move all keys, access tokens, webhook secrets, pending claims and archives of history to the keyring's primary entry; the service may be running; may be interrupted and run again",
    )
    .action(async () => {
      const config = readConfig(env);
      const { url, keyring } = await locate(config);
      await withInstallation(config, { url, keyring, queryTimeoutMs }, rekeyAll);
    });
}

async function rekeyAll(transactor: Transactor): Promise<void> {
  const { db, keyring } = transactor;
  const progress = showProgress('Rekeying');
  const moved = await rekey({ transactor, onProgress: progress.show }, keys).finally(progress.end);
  report(keyring, moved, (count) => counted(count, 'key was', 'keys were'));
  if (moved.renewed === 0) print(`Nothing was moved to ${keyring.primary.id}.`);
  report(keyring, await rekey({ transactor }, accessTokens), (count) =>
    counted(count, 'access token was', 'access tokens were'),
  );
  report(keyring, await rekey({ transactor }, webhooks), (count) => `The secrets of ${counted(count, 'webhook')} were`);
  report(keyring, await rekey({ transactor }, claims), (count) =>
    counted(count, 'pending claim was', 'pending claims were'),
  );
  report(keyring, await rekey({ transactor }, archives), (count) =>
    counted(count, 'archive of history was', 'archives of history were'),
  );
  for (const line of describeKeyringUse(keyring, await countKeyringUse(db))) print(line);
}

/** @param subject a number of records, with the verb: `2 keys were` */
function report(
  keyring: Keyring,
  { renewed, unopened, locked, since }: RekeyResult,
  subject: (count: number) => string,
): void {
  const primary = keyring.primary.id;
  for (const { id, reason } of unopened) wrong(`${id} was not moved: ${reasons[reason]}.`);
  if (locked > 0) wrong(`${subject(locked)} locked by other transactions. Run this command again.`);
  if (since > 0) {
    wrong(
      `${subject(since)} sealed or tagged under another entry meanwhile: a replica uses another primary. ` +
        `Restart every replica with ${primary} as the first entry, then run this command again.`,
    );
  }
  if (renewed > 0) print(`${subject(renewed)} moved to ${primary}.`);
}

const reasons: Record<Unopened['reason'], string> = {
  unknown_keyring_entry: 'the keyring lacks the entry of its sealed value',
  not_authentic: 'its sealed value was changed, or belongs to another record',
  row_not_authentic: 'its row was changed or written without the keyring, or the keyring lacks the entry of its MAC',
};
