import { Command, Option } from 'commander';
import { sql } from 'kysely';
import { z } from 'zod';
import { type Config, ConfigError, exampleOf, readConfig } from '../config/config.ts';
import { createSecretText, type SecretText } from '../crypto/secret-text.ts';
import { emailInput, nameInput } from '../http/schemas.ts';
import { hasOrganization, isOrganizationNameTaken } from '../organizations/store.ts';
import { bootstrap, bootstrapOperator } from '../service/bootstrap.ts';
import { tokenCrypto } from '../service/token-crypto.ts';
import { locate } from './locate.ts';
import { print } from './print.ts';
import { withInstallation } from './with-installation.ts';

interface Options {
  organization?: string;
  adminEmail?: string;
  operator?: true;
}

export function bootstrapCommand(env: NodeJS.ProcessEnv): Command {
  return new Command('bootstrap')
    .description(
      'create an organization and its first tokens in your own Postgres; prints the tokens as JSON, only once',
    )
    .option('--organization <name>', 'name of the organization')
    .option('--admin-email <address>', 'e-mail address of its first admin')
    .addOption(
      new Option(
        '--operator',
        "create one more operator's token, for example if all are lost; also works beside a running `npm start`",
      ).conflicts(['organization', 'adminEmail']),
    )
    .action(async (options: Options, command: Command) => {
      const config = readConfig(env);
      if (options.operator) return createOperator(config);
      const { organization, adminEmail } = options;
      if (organization === undefined)
        return command.error("error: required option '--organization <name>' not specified");
      if (adminEmail === undefined)
        return command.error("error: required option '--admin-email <address>' not specified");
      return createOrganization(config, organization, adminEmail);
    });
}

async function createOrganization(config: Config, organization: string, email: string): Promise<void> {
  const secrets = createSecretText(config.TOKEN_PREFIX);
  const organizationName = parseOption('--organization', nameInput, organization, secrets);
  const adminEmail = parseOption('--admin-email', emailInput, email, secrets);
  const { DATABASE_URL: url, keyring } = config;
  if (url === undefined || keyring === undefined) {
    throw new ConfigError([
      `DATABASE_URL must be set, for example DATABASE_URL=${exampleOf('DATABASE_URL')}. ` +
        'The embedded database is bootstrapped by its first start.',
    ]);
  }
  await withInstallation(config, { url, keyring }, async (transactor) => {
    const deps = { transactor, crypto: tokenCrypto(config, keyring) };
    const created = await bootstrapOnce(deps, { organizationName, adminEmail });
    show({
      organizationId: created.organizationId,
      adminToken: created.adminToken.reveal(),
      verifierToken: created.verifierToken.reveal(),
      operatorToken: created.operatorToken.reveal(),
    });
  });
}

/** A lock outside the bootstrap's own transactions allows one bootstrap at a time. */
function bootstrapOnce(deps: BootstrapDeps, request: { organizationName: string; adminEmail: string }) {
  return deps.transactor.db.transaction().execute(async (tx) => {
    await sql`select pg_advisory_xact_lock(hashtext('latchkey bootstrap'))`.execute(tx);
    const { organizationName } = request;
    if (await isOrganizationNameTaken(tx, organizationName)) {
      throw new Error(
        `An organization named ${organizationName} already exists. Nothing was created. An operator can create tokens for it ` +
          "with POST /v1/access-tokens. If the operators' tokens are lost, `latchkey bootstrap --operator` creates one. " +
          'To create another organization, use another name.',
      );
    }
    return bootstrap(deps, request);
  });
}

async function createOperator(config: Config): Promise<void> {
  const { url, keyring } = await locate(config);
  await withInstallation(config, { url, keyring }, async (transactor) => {
    if (!(await hasOrganization(transactor.db))) {
      throw new Error(
        'There is no organization yet. `latchkey bootstrap --organization NAME --admin-email ADDRESS` creates the first one and ' +
          "an operator's token.",
      );
    }
    const operatorToken = await bootstrapOperator({ transactor, crypto: tokenCrypto(config, keyring) });
    show({ operatorToken: operatorToken.reveal() });
    process.stderr.write(
      'This is one more operator: the history of the installation records it, and the tokens of other operators still work. ' +
        'If they are lost, delete them with DELETE /v1/access-tokens/{id}.\n',
    );
  });
}

type BootstrapDeps = Parameters<typeof bootstrapOperator>[0];

function show(tokens: Record<string, string>): void {
  print(JSON.stringify(tokens, null, 2));
  process.stderr.write('Store these tokens now: Latchkey cannot print them again.\n');
}

function parseOption(option: string, schema: z.ZodType<string>, value: string, secrets: SecretText): string {
  if (secrets.isIn(value)) throw new Error(`${option} must not contain a Latchkey token.`);
  const parsed = schema.safeParse(value);
  if (!parsed.success) throw new Error(`${option} ${z.treeifyError(parsed.error).errors.join('; ')}.`);
  return parsed.data;
}
