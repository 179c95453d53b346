import { integer, redisUrl } from '../../lib/config-forms.ts';
import { secretFile } from '../secret-files.ts';

/** Key verification, its cache and shared rate limits. */
export const verificationSettings = {
  VERIFY_STALE_SECONDS: integer(0, 86_400).default(30).meta({
    description: 'How long known keys stay valid while Postgres does not respond. 0: not at all.',
    example: '30',
  }),
  VERIFY_CACHE_SIZE: integer(100, 10_000_000).default(200_000).meta({
    description: 'The maximum number of keys in memory, about 1.3 KB each.',
    example: '200000',
  }),
  CHANGE_STREAMS: integer(0, 100_000).default(1_000).meta({
    description:
      'The maximum number of backends that follow `/v1/changes` at once. One organization may have half of those that are free.',
    example: '1000',
  }),
  REDIS_URL: redisUrl.optional().meta({
    description:
      'A Redis or Valkey in which the replicas count rate limits together; also by TLS (`rediss://`) or as a cluster (`redis+cluster://host:6379,host:6379`). Not set: each replica counts by itself.',
    example: 'redis://cache:6379',
  }),
  REDIS_URL_FILE: secretFile('REDIS_URL'),
};
