import { z } from 'zod';
import { boolean, httpUrl, integer, isTrustworthyUrl, networks, publicUrl } from '../../lib/config-forms.ts';

/** The process, its addresses, its log and its traces. */
export const serviceSettings = {
  HOST: z.string().default('127.0.0.1').meta({
    description: 'The address to listen on; 0.0.0.0 for all IPv4 addresses.',
    example: '0.0.0.0',
  }),
  PORT: integer(0, 65_535).optional().meta({
    description: 'The port to listen on. Not set: 8080; with the embedded database another port if 8080 is taken.',
    example: '8080',
  }),
  METRICS_PORT: integer(0, 65_535).optional().meta({
    description: 'A separate port for /metrics. Not set: /metrics is served on PORT.',
    example: '9464',
  }),
  PUBLIC_URL: publicUrl.optional().meta({
    description:
      'The URL under which people reach this service, with the path prefix of a proxy if there is one. Links to the page of a claim begin with it. Not set: replies contain no link.',
    example: 'https://keys.example.com',
  }),
  TRUST_PROXY: networks.optional().meta({
    description:
      'Proxies whose X-Forwarded-For is trusted: addresses and networks, separated by commas. Not set: none.',
    example: '10.0.0.0/8,127.0.0.1',
  }),
  DRAIN_SECONDS: integer(0, 300).default(1).meta({
    description: 'After a stop signal, the service accepts requests for this many seconds while /readyz returns 503.',
    example: '10',
  }),
  LOG_LEVEL: z.enum(['fatal', 'error', 'warn', 'info', 'debug', 'trace', 'silent']).default('info').meta({
    description: 'The lowest level that is logged.',
    example: 'debug',
  }),
  LOG_FORMAT: z.enum(['json', 'pretty']).optional().meta({
    description: 'The format of the log. Not set: `pretty` on a terminal, otherwise `json`.',
    example: 'json',
  }),
  OTEL_EXPORTER_OTLP_ENDPOINT: httpUrl.optional().meta({
    description: 'The URL to which spans are sent by OTLP over HTTP. Not set: no spans are recorded.',
    example: 'http://collector:4318',
  }),
  OTEL_SERVICE_NAME: z.string().max(255).default('latchkey').meta({
    description: 'The name of this service in traces.',
    example: 'latchkey-eu',
  }),
  TOKEN_PREFIX: z
    .string()
    .regex(/^[a-z][a-z0-9]{1,9}$/, 'must be 2 to 10 characters of a-z and 0-9, beginning with a letter')
    .default('lk')
    .meta({
      description: 'The prefix of every key and token. It cannot be changed after the first start.',
      example: 'acme',
    }),
  GITHUB_KEYS_URL: z.string().refine(isTrustworthyUrl, 'must be an https:// URL').optional().meta({
    description:
      'The URL of the public keys with which GitHub signs its reports of leaked keys (docs/leaks.md). Not set: `POST /v1/leaks/github` does not exist.',
    example: 'https://api.github.com/meta/public_keys/secret_scanning',
  }),
  LATCHKEY_DATA_DIR: z.string().optional().meta({
    description:
      'The folder with the embedded database, its keyring and credentials.json. Not set: .latchkey in the working folder; for root a folder in /var/lib/latchkey.',
    example: '/srv/latchkey',
  }),
  LATCHKEY_STRICT: boolean.default(false).meta({
    description: 'If the database does not protect the history, do not start. Not set: only log a warning.',
    example: 'true',
  }),
};
