import { integer } from '../../lib/config-forms.ts';

/** Cost of argon2id and how many runs there may be at once. */
export const argon2Settings = {
  ARGON2_MEMORY_KIB: integer(8, 65_536).default(19_456).meta({
    description: 'The memory of one argon2id run, in KiB.',
    example: '19456',
  }),
  ARGON2_TIME_COST: integer(1, 10).default(2).meta({ description: 'The passes of one argon2id run.', example: '2' }),
  ARGON2_PARALLELISM: integer(1, 4).default(1).meta({ description: 'The lanes of one argon2id run.', example: '1' }),
  ARGON2_CONCURRENCY: integer(1, 64)
    .default(2)
    .meta({ description: 'The maximum number of argon2id runs at once.', example: '2' }),
  ARGON2_QUEUE_LIMIT: integer(0, 10_000).default(100).meta({
    description: 'The maximum number of argon2id runs that wait. Further requests are rejected with 503.',
    example: '100',
  }),
};
