/** Reasons why an attempt got no usable reply. A reply with any status is not among them. */
export const deliveryFailures = {
  url_refused: 'The URL is not allowed.',
  dns_failed: 'The name could not be resolved.',
  address_refused: 'The name, or the address in the URL, leads to an address that is not public.',
  connect_failed: 'The connection could not be established.',
  tls_failed: 'The TLS handshake failed, or the certificate is not valid for this name.',
  reply_broken: 'The connection ended before the reply was complete, or the reply was not HTTP.',
  timed_out: 'The endpoint did not reply in time.',
} as const;

export type DeliveryFailure = keyof typeof deliveryFailures;

export class DeliveryFailed extends Error {
  override readonly name = 'DeliveryFailed';
  readonly reason: DeliveryFailure;
  /** From the start of the attempt to the failure. */
  durationMs = 0;

  /** @param cause logged but never returned to callers, because it may name internal addresses */
  constructor(reason: DeliveryFailure, cause?: unknown) {
    super(deliveryFailures[reason], cause === undefined ? undefined : { cause });
    this.reason = reason;
  }
}
