import { createHmac, randomBytes } from 'node:crypto';
import { Secret } from '../crypto/secret.ts';

/**
 * Signatures as Standard Webhooks 1.0.0 has them (https://www.standardwebhooks.com), symmetric ones: HMAC-SHA-256 over
 * `<id>.<timestamp>.<body>`, in base64 behind `v1,`.
 */

export interface SignedDelivery {
  /** The same in every attempt: a receiver knows a repeated delivery by it. */
  id: string;
  /** Of this attempt, in whole seconds since 1970; receivers refuse what is old. */
  timestampSeconds: number;
  /** The very text that is sent. */
  body: string;
}

export interface SignatureHeaders {
  'webhook-id': string;
  'webhook-timestamp': string;
  /** One signature for each secret, with spaces between them: a receiver needs to know one of the secrets. */
  'webhook-signature': string;
}

const prefix = 'whsec_';

/** The specification allows 24 to 64 bytes; 32 are what HMAC-SHA-256 can use. */
const secretBytes = 32;

export function generateWebhookSecret(): Secret {
  return new Secret(prefix + randomBytes(secretBytes).toString('base64'));
}

/** @param secrets one, or during a rotation the new one and the old one */
export function signDelivery(secrets: readonly Secret[], delivery: SignedDelivery): SignatureHeaders {
  const timestamp = String(delivery.timestampSeconds);
  const content = `${delivery.id}.${timestamp}.${delivery.body}`;
  return {
    'webhook-id': delivery.id,
    'webhook-timestamp': timestamp,
    'webhook-signature': secrets.map((secret) => `v1,${signatureOf(secret, content)}`).join(' '),
  };
}

function signatureOf(secret: Secret, content: string): string {
  const key = Buffer.from(secret.reveal().slice(prefix.length), 'base64');
  return createHmac('sha256', key).update(content, 'utf8').digest('base64');
}
