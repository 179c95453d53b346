import { Command, Option } from 'commander';
import { sql } from 'kysely';
import { z } from 'zod';
import { type Config, ConfigError, exampleOf, readConfig } from '../config/config.ts';
import type { Keyring } from '../crypto/keyring.ts';
import { createSecretText, type SecretText } from '../crypto/secret-text.ts';
import { connect } from '../database/client.ts';
import { createDatabaseClock } from '../database/clock.ts';
import { confirmInstallation } from '../database/installation.ts';
import { requireCurrentSchema } from '../database/migrator.ts';
import { emailInput, nameInput } from '../http/schemas.ts';
import { hasOrganization, isOrganizationNameTaken } from '../organizations/store.ts';
import { bootstrap, bootstrapOperator } from '../service/bootstrap.ts';
import { tokenCrypto } from '../service/token-crypto.ts';
import { enqueueDeliveries } from '../webhooks/enqueue-deliveries.ts';
import { locate } from './locate.ts';
import { print } from './print.ts';

interface Options {
  organization?: string;
  adminEmail?: string;
  operator?: true;
}

export function bootstrapCommand(env: NodeJS.ProcessEnv): Command {
  return new Command('bootstrap')
    .description("make an organization and its first tokens in a Postgres of one's own; printed as JSON this once")
    .option('--organization <name>', 'the name of the organization')
    .option('--admin-email <address>', 'the e-mail address of its first admin')
    .addOption(
      new Option(
        '--operator',
        "instead: only an operator's token, where all are lost; also beside a running `npm start`",
      ).conflicts(['organization', 'adminEmail']),
    )
    .action(async (options: Options, command: Command) => {
      const config = readConfig(env);
      if (options.operator) return makeOperator(config);
      const { organization, adminEmail } = options;
      if (organization === undefined)
        return command.error("error: required option '--organization <name>' not specified");
      if (adminEmail === undefined)
        return command.error("error: required option '--admin-email <address>' not specified");
      return makeOrganization(config, organization, adminEmail);
    });
}

async function makeOrganization(config: Config, organization: string, email: string): Promise<void> {
  const secrets = createSecretText(config.TOKEN_PREFIX);
  const organizationName = readGood('--organization', nameInput, organization, secrets);
  const adminEmail = readGood('--admin-email', emailInput, email, secrets);
  const { DATABASE_URL: url, keyring } = config;
  if (url === undefined || keyring === undefined) {
    throw new ConfigError([
      `DATABASE_URL must be set, for example DATABASE_URL=${exampleOf('DATABASE_URL')}. ` +
        'The embedded database is bootstrapped by its first start.',
    ]);
  }
  await withDatabase(config, { url, keyring }, async (deps) => {
    const made = await bootstrapOnce(deps, { organizationName, adminEmail });
    show({
      organizationId: made.organizationId,
      adminToken: made.adminToken.reveal(),
      verifierToken: made.verifierToken.reveal(),
      operatorToken: made.operatorToken.reveal(),
    });
  });
}

/** One at a time in an installation, by a lock that is held beside the transactions of the bootstrap. */
function bootstrapOnce(deps: BootstrapDeps, request: { organizationName: string; adminEmail: string }) {
  return deps.transactor.db.transaction().execute(async (tx) => {
    await sql`select pg_advisory_xact_lock(hashtext('latchkey bootstrap'))`.execute(tx);
    const { organizationName } = request;
    if (await isOrganizationNameTaken(tx, organizationName)) {
      throw new Error(
        `There is an organization named ${organizationName} already, and nothing was made. An operator makes tokens for it ` +
          "with POST /v1/access-tokens; where the operators' tokens are lost, `latchkey bootstrap --operator` makes one. " +
          'For another organization give another name.',
      );
    }
    return bootstrap(deps, request);
  });
}

async function makeOperator(config: Config): Promise<void> {
  await withDatabase(config, await locate(config), async (deps) => {
    if (!(await hasOrganization(deps.transactor.db))) {
      throw new Error(
        'There is no organization yet: `latchkey bootstrap --organization NAME --admin-email ADDRESS` makes the first one, with ' +
          "an operator's token.",
      );
    }
    show({ operatorToken: (await bootstrapOperator(deps)).reveal() });
  });
}

type BootstrapDeps = Parameters<typeof bootstrapOperator>[0];

async function withDatabase(
  config: Config,
  { url, keyring }: { url: string; keyring: Keyring },
  act: (deps: BootstrapDeps) => Promise<void>,
): Promise<void> {
  const client = connect({ url, poolSize: 2 });
  try {
    await requireCurrentSchema(client.db);
    const crypto = tokenCrypto({ ...config, keyring });
    await confirmInstallation(client.db, { tokenPrefix: crypto.prefix, keyring });
    await act({
      transactor: { db: client.db, keyring, clock: createDatabaseClock(), onAppended: enqueueDeliveries },
      crypto,
    });
  } finally {
    await client.close();
  }
}

function show(tokens: Record<string, string>): void {
  print(JSON.stringify(tokens, null, 2));
  process.stderr.write('Keep this now: it is shown this once.\n');
}

function readGood(option: string, schema: z.ZodType<string>, value: string, secrets: SecretText): string {
  if (secrets.isIn(value)) throw new Error(`${option} must not contain a Latchkey token.`);
  const parsed = schema.safeParse(value);
  if (!parsed.success) throw new Error(`${option} ${z.treeifyError(parsed.error).errors.join('; ')}.`);
  return parsed.data;
}
