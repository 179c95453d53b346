import type { SecretCheck } from '../auth/secret-check.ts';
import { type ApiKeyRecord, findApiKey } from '../auth/store.ts';
import type { KeyId, OrganizationId } from '../core/ids.ts';
import { Secret } from '../crypto/secret.ts';
import { parseToken } from '../crypto/token.ts';
import type { Db } from '../db/client.ts';
import { decide, type VerdictCode, type Wanted } from './policy.ts';

/** The answer to a verification. The key is told only where the presented secret was the right one. */
export type Verdict =
  | { code: 'malformed' | 'not_found'; key: null }
  | { code: Exclude<VerdictCode, 'malformed' | 'not_found'>; key: ApiKeyRecord };

export interface Verifier {
  /**
   * @param asker the organization that the caller asks for; null: for all. Another's key is `not_found`.
   * @throws Problem `overloaded` where the argon2id path is asked too often
   */
  verify(presented: string, wanted: Wanted, asker: OrganizationId | null): Promise<Verdict>;
}

interface VerifierOptions {
  db: Db;
  prefix: string;
  checkSecret: SecretCheck;
  clockShiftMs: () => number;
}

/** Cheapest checks first, each refusing before the next is paid: form, record, secret, state. */
export function createVerifier({ db, prefix, checkSecret, clockShiftMs }: VerifierOptions): Verifier {
  return {
    async verify(presented, wanted, asker) {
      const parsed = parseToken(presented, prefix);
      if (parsed?.kind !== 'k') return { code: 'malformed', key: null };
      const record = await findApiKey(db, `key_${parsed.idSuffix}` as KeyId);
      const matches = await checkSecret(record, new Secret(presented));
      const isAskers = asker === null || record?.organization_id === asker;
      if (record === undefined || !matches || !isAskers) return { code: 'not_found', key: null };
      const now = new Date(record.databaseTime.getTime() + clockShiftMs());
      return { code: decide(record, wanted, now), key: record } as Verdict;
    },
  };
}
