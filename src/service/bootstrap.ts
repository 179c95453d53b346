import { addAccessToken, type MintedAccessToken, mintAccessToken } from '../access-tokens/commands.ts';
import type { TokenCrypto } from '../credentials/mint.ts';
import type { Secret } from '../crypto/secret.ts';
import { type Transactor, transact } from '../database/work.ts';
import { systemActor } from '../domain/actor.ts';
import { newId, type OrganizationId } from '../domain/ids.ts';
import { tokenScopes } from '../domain/permissions.ts';
import { addKey, defaultSettings } from '../keys/commands.ts';
import type { KeyMint } from '../keys/mint.ts';
import { addOrganization } from '../organizations/commands.ts';

/** The first organization with its first tokens. The plaintexts exist only here. */
export interface Bootstrapped {
  organizationId: OrganizationId;
  adminToken: Secret;
  verifierToken: Secret;
  operatorToken: Secret;
  /** A key of the organization itself. Undefined: none was requested. */
  key: Secret | undefined;
}

export interface BootstrapDeps {
  transactor: Transactor;
  crypto: TokenCrypto;
}

interface BootstrapRequest {
  organizationName: string;
  adminEmail: string;
  /** If set, the organization starts with a key of its own. */
  keyMint?: KeyMint;
  /** Called before the commit, to store the tokens where a crash cannot lose them. */
  beforeCommit?: (bootstrapped: Bootstrapped) => Promise<void>;
}

const bootstrapActor = systemActor('bootstrap');

/** Creates an organization with an admin and a verifier, and an operator for the installation. */
export async function bootstrap(
  { transactor, crypto }: BootstrapDeps,
  { organizationName, adminEmail, keyMint, beforeCommit }: BootstrapRequest,
): Promise<Bootstrapped> {
  const organizationId = newId('org');
  const [admin, verifier, operator, key] = await Promise.all([
    mintAccessToken(crypto, 'admin'),
    mintAccessToken(crypto, 'verifier'),
    mintAccessToken(crypto, 'operator'),
    keyMint?.mint(organizationId),
  ]);
  const bootstrapped: Bootstrapped = {
    organizationId,
    adminToken: admin.plaintext,
    verifierToken: verifier.plaintext,
    operatorToken: operator.plaintext,
    key: key?.plaintext,
  };
  await beforeCommit?.(bootstrapped);
  // The operator first: if an organization exists, the bootstrap is complete.
  await addOperator(transactor, operator, 'First operator');
  const by = { actor: bootstrapActor, organizationId, request: null };
  await transact(transactor, by, async (work) => {
    const organization = await addOrganization(work, { name: organizationName });
    await addAccessToken(work, admin, {
      role: 'admin',
      name: 'First admin',
      email: adminEmail,
      scopes: [...tokenScopes],
      expiresAt: null,
    });
    await addAccessToken(work, verifier, {
      role: 'verifier',
      name: 'First verifier',
      email: null,
      scopes: ['read'],
      expiresAt: null,
    });
    if (key === undefined) return;
    const settings = { ...defaultSettings, name: 'First key' };
    await addKey(work, { partner: null, organization, permission: 'read_write', minted: key, settings });
  });
  return bootstrapped;
}

/** Creates one more operator's token. Others may be live: a lost token is not marked as lost. */
export async function bootstrapOperator({ transactor, crypto }: BootstrapDeps): Promise<Secret> {
  const operator = await mintAccessToken(crypto, 'operator');
  await addOperator(transactor, operator, 'Operator by latchkey bootstrap');
  return operator.plaintext;
}

async function addOperator(transactor: Transactor, operator: MintedAccessToken, name: string): Promise<void> {
  const by = { actor: bootstrapActor, organizationId: null, request: null };
  await transact(transactor, by, (work) =>
    addAccessToken(work, operator, {
      role: 'operator',
      name,
      email: null,
      scopes: [...tokenScopes],
      expiresAt: null,
    }),
  );
}
