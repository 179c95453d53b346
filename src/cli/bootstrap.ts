import { Command } from 'commander';
import { z } from 'zod';
import { bootstrap } from '../bootstrap.ts';
import { ConfigError, exampleOf, readConfig } from '../config.ts';
import { createSecretText, type SecretText } from '../crypto/secret-text.ts';
import { connect } from '../db/client.ts';
import { confirmInstallation } from '../db/installation.ts';
import { requireCurrentSchema } from '../db/migrator.ts';
import { emailInput, nameInput } from '../http/schemas.ts';
import { isOrganizationNameTaken } from '../organizations/store.ts';
import { tokenCrypto } from '../service.ts';
import { print } from './print.ts';

interface Options {
  organization: string;
  adminEmail: string;
}

export function bootstrapCommand(env: NodeJS.ProcessEnv): Command {
  return new Command('bootstrap')
    .description("for a Postgres of one's own: make an organization and its first tokens, printed as JSON this once")
    .requiredOption('--organization <name>', 'the name of the organization')
    .requiredOption('--admin-email <address>', 'the e-mail address of its first admin')
    .action(async (options: Options) => {
      const config = readConfig(env);
      const secrets = createSecretText(config.TOKEN_PREFIX);
      const organizationName = readGood('--organization', nameInput, options.organization, secrets);
      const adminEmail = readGood('--admin-email', emailInput, options.adminEmail, secrets);
      const url = config.DATABASE_URL;
      if (url === undefined) {
        throw new ConfigError([
          `DATABASE_URL must be set, for example DATABASE_URL=${exampleOf('DATABASE_URL')}. ` +
            'The embedded database is bootstrapped by its first start.',
        ]);
      }
      const client = connect({ url, poolSize: 2 });
      try {
        await requireCurrentSchema(client.db);
        const crypto = tokenCrypto(config);
        await confirmInstallation(client.db, { tokenPrefix: crypto.prefix, keyring: crypto.keyring });
        if (await isOrganizationNameTaken(client.db, organizationName)) {
          throw new Error(
            `There is an organization named ${organizationName} already. An operator makes tokens for it with ` +
              'POST /v1/access-tokens; for another organization give another name.',
          );
        }
        const transactor = { db: client.db, keyring: crypto.keyring, clockShiftMs: () => 0 };
        const made = await bootstrap({ transactor, crypto }, { organizationName, adminEmail });
        const tokens = {
          organizationId: made.organizationId,
          adminToken: made.adminToken.reveal(),
          verifierToken: made.verifierToken.reveal(),
          operatorToken: made.operatorToken.reveal(),
        };
        print(JSON.stringify(tokens, null, 2));
        process.stderr.write('Keep these tokens now: they are shown this once.\n');
      } finally {
        await client.close();
      }
    });
}

function readGood(option: string, schema: z.ZodType<string>, value: string, secrets: SecretText): string {
  if (secrets.isIn(value)) throw new Error(`${option} must not contain a Latchkey token.`);
  const parsed = schema.safeParse(value);
  if (!parsed.success) throw new Error(`${option} ${z.treeifyError(parsed.error).errors.join('; ')}.`);
  return parsed.data;
}
