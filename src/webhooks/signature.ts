import { createHmac, randomBytes } from 'node:crypto';
import { Secret } from '../crypto/secret.ts';

/**
 * Symmetric signatures of Standard Webhooks 1.0.0 (https://www.standardwebhooks.com): HMAC-SHA-256 over
 * `<id>.<timestamp>.<body>`, in base64 after `v1,`.
 */

export interface SignedDelivery {
  /** The same in every attempt, so that a receiver recognizes a repeated delivery. */
  id: string;
  /** The time of this attempt in seconds since 1970; receivers reject old ones. */
  timestampSeconds: number;
  /** The exact text that is sent. */
  body: string;
}

export interface SignatureHeaders {
  'webhook-id': string;
  'webhook-timestamp': string;
  /** One signature per secret, separated by spaces: a receiver needs only one of the secrets. */
  'webhook-signature': string;
}

const prefix = 'whsec_';

/** The specification allows 24 to 64 bytes; HMAC-SHA-256 uses at most 32. */
const secretBytes = 32;

export function generateWebhookSecret(): Secret {
  return new Secret(prefix + randomBytes(secretBytes).toString('base64'));
}

/** Signs a delivery. @param secrets one, or during a rotation the new one and the old one */
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
