import type { Config } from '../config/config.ts';
import type { TokenCrypto } from '../credentials/mint.ts';
import { createSecretHasher } from '../crypto/secret-hash.ts';

/** How tokens are minted and checked with this configuration. @param keyring default: the configuration's keyring */
export function tokenCrypto(config: Config, keyring = config.keyring): TokenCrypto {
  if (keyring === undefined) throw new Error('the configuration was read without a keyring');
  return {
    prefix: config.TOKEN_PREFIX,
    keyring,
    hasher: createSecretHasher({
      memoryKib: config.ARGON2_MEMORY_KIB,
      timeCost: config.ARGON2_TIME_COST,
      parallelism: config.ARGON2_PARALLELISM,
      concurrency: config.ARGON2_CONCURRENCY,
      queueLimit: config.ARGON2_QUEUE_LIMIT,
    }),
  };
}
