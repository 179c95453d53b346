/** The bytes of an HTTP request before and after the key, and the response that is expected. */
export interface RequestTemplate {
  beforeKey: string;
  afterKey: string;
  expectedStatus: number;
  /** The response, with its headers, must contain this text. */
  expectedText: string;
}

/** Prefix and kind, id, 43 characters of secret, 6 of checksum. */
const keyLength = 'lk_k_'.length + 26 + '_'.length + 43 + 6;

const id = '01k9s3v5wqe8n8x4r2m6t7yb0c';

/** A body of the same size as Latchkey's response for a key of the benchmark. */
export const verifyResponseBody = JSON.stringify({
  valid: true,
  code: 'valid',
  keyId: `key_${id}`,
  organizationId: `org_${id}`,
  partnerId: `partner_${id}`,
  partnerExternalId: null,
  partnerEmail: `partner_${id}@bench.example`,
  permission: 'read',
  name: 'Bench',
  metadata: { environment: 'bench' },
  expiresAt: null,
  dependsOnIp: false,
  rateLimit: {
    policy: 'owner',
    limit: 1_000_000_000,
    windowSeconds: 86_400,
    remaining: 999_999_999,
    resetSeconds: 86_400,
  },
});

/** The headers of Latchkey's response for a key of the benchmark. */
export const authorizeResponseHeaders = {
  'x-latchkey-key-id': `key_${id}`,
  'x-latchkey-organization-id': `org_${id}`,
  'x-latchkey-partner-id': `partner_${id}`,
  'x-latchkey-partner-external-id': '',
  'x-latchkey-permission': 'read',
  'ratelimit-policy': '"owner";q=1000000000;w=86400',
  ratelimit: '"owner";r=999999999;t=86400',
};

/** `POST /v1/verify`. @param headers additional header lines, each ending with CRLF */
export function verifyRequest(verifierToken: string, expectedText: string, headers = ''): RequestTemplate {
  const [bodyBeforeKey, bodyAfterKey] = ['{"key":"', '","permission":"read","ip":"203.0.113.7"}'];
  const length = bodyBeforeKey.length + keyLength + bodyAfterKey.length;
  const head = [
    'POST /v1/verify HTTP/1.1',
    'Host: 127.0.0.1',
    `Authorization: Bearer ${verifierToken}`,
    'Content-Type: application/json',
    `Content-Length: ${length}`,
  ];
  return {
    beforeKey: `${head.join('\r\n')}\r\n${headers}\r\n${bodyBeforeKey}`,
    afterKey: bodyAfterKey,
    expectedStatus: 200,
    expectedText,
  };
}

/** `GET /v1/authorize`, as nginx sends it. */
export function authorizeRequest(verifierToken: string): RequestTemplate {
  const head = [
    'GET /v1/authorize HTTP/1.1',
    'Host: 127.0.0.1',
    `X-Latchkey-Token: ${verifierToken}`,
    'X-Forwarded-Method: GET',
    'Authorization: Bearer ',
  ];
  return {
    beforeKey: head.join('\r\n'),
    afterKey: '\r\n\r\n',
    expectedStatus: 200,
    expectedText: 'x-latchkey-key-id: key_',
  };
}
