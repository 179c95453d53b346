import { integer } from '../../lib/config-forms.ts';

/** Limits that protect the service itself, apart from the limits of keys. */
export const limitsSettings = {
  CALLER_LIMIT: integer(1, 1_000_000_000).default(3_000).meta({
    description: 'Requests to the management endpoints per minute and caller.',
    example: '3000',
  }),
  ADDRESS_LIMIT: integer(1, 1_000_000_000).default(60).meta({
    description: 'Rejected access tokens and codes of claims per minute and client address.',
    example: '60',
  }),
  PUBLIC_LIMIT: integer(1, 1_000_000_000).default(600).meta({
    description:
      'Requests per minute and client address to each route without a credential, such as `/docs`. `/livez` and `/readyz` are not counted.',
    example: '600',
  }),
  REVEAL_LIMIT: integer(1, 1_000_000_000).default(10).meta({
    description:
      'Reveals and claims for existing keys per minute of one admin, together with all tokens that the admin has created. Also the rotations per minute of one key with itself.',
    example: '10',
  }),
  MAX_CONNECTIONS: integer(1, 1_000_000).default(10_000).meta({
    description: 'The maximum number of connections at once. The descriptor limit (`ulimit -n`) may lower it.',
    example: '10000',
  }),
  EVENT_LOOP_DELAY_LIMIT_MS: integer(20, 60_000).default(500).meta({
    description:
      'If the average event-loop delay exceeds this value, requests are rejected with 503 (verification requests at four times this value).',
    example: '1000',
  }),
};
