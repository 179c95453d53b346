/** A request as it goes over the wire, but for the key, which stands between the two. */
export interface Question {
  before: string;
  after: string;
  /** What every answer must begin with and hold; anything else is counted as wrong. */
  status: number;
  text: string;
}

/** Prefix, kind, id, 43 characters of secret and 6 of checksum: all keys have the same length. */
const keyLength = 'lk_k_'.length + 26 + '_'.length + 43 + 6;

const id = '01k9s3v5wqe8n8x4r2m6t7yb0c';

/** A body of the same size as Latchkey's answer for one of the bench's keys. */
export const verifyAnswer = JSON.stringify({
  valid: true,
  code: 'valid',
  keyId: `key_${id}`,
  organizationId: `org_${id}`,
  partnerId: `partner_${id}`,
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

export const authorizeAnswer = {
  'x-latchkey-key-id': `key_${id}`,
  'x-latchkey-organization-id': `org_${id}`,
  'x-latchkey-partner-id': `partner_${id}`,
  'x-latchkey-permission': 'read',
  'ratelimit-policy': '"owner";q=1000000000;w=86400',
  ratelimit: '"owner";r=999999999;t=86400',
};

/** `POST /v1/verify`. @param headers further lines, each with its end */
export function verifyQuestion(verifierToken: string, text: string, headers = ''): Question {
  const [bodyBefore, bodyAfter] = ['{"key":"', '","permission":"read","ip":"203.0.113.7"}'];
  const length = bodyBefore.length + keyLength + bodyAfter.length;
  const head = [
    'POST /v1/verify HTTP/1.1',
    'Host: 127.0.0.1',
    `Authorization: Bearer ${verifierToken}`,
    'Content-Type: application/json',
    `Content-Length: ${length}`,
  ];
  return { before: `${head.join('\r\n')}\r\n${headers}\r\n${bodyBefore}`, after: bodyAfter, status: 200, text };
}

/** `GET /v1/authorize`, as nginx asks it. */
export function authorizeQuestion(verifierToken: string): Question {
  const head = [
    'GET /v1/authorize HTTP/1.1',
    'Host: 127.0.0.1',
    `X-Latchkey-Token: ${verifierToken}`,
    'X-Forwarded-Method: GET',
    'Authorization: Bearer ',
  ];
  return { before: head.join('\r\n'), after: '\r\n\r\n', status: 200, text: 'x-latchkey-key-id: key_' };
}
