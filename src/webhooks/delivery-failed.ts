/** Why nothing that could be read came back, a closed list. A reply with any status is no such failure. */
export const deliveryFailures = {
  url_refused: 'The URL may not be called.',
  dns_failed: 'The name could not be resolved.',
  address_refused: 'The name, or the address in the URL, leads to an address that is not public.',
  connect_failed: 'No connection could be made.',
  tls_failed: 'The TLS handshake failed, or the certificate is not good for this name.',
  reply_broken: 'The connection ended before a whole reply was there, or the reply was not HTTP.',
  timed_out: 'The exchange was not over in time.',
} as const;

export type DeliveryFailure = keyof typeof deliveryFailures;

export class DeliveryFailed extends Error {
  override readonly name = 'DeliveryFailed';
  readonly reason: DeliveryFailure;
  /** From the start of the attempt to its failure. */
  durationMs = 0;

  /** @param cause logged, never shown: it may name addresses of the installation's own network */
  constructor(reason: DeliveryFailure, cause?: unknown) {
    super(deliveryFailures[reason], cause === undefined ? undefined : { cause });
    this.reason = reason;
  }
}
