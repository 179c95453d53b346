import type ipaddr from 'ipaddr.js';

/** A network whose addresses may be called although they are not public. */
export type AddressRange = readonly [ipaddr.IPv4 | ipaddr.IPv6, number];

/** What an installation lets webhooks reach. */
export interface EgressRules {
  /** Plain http besides https. */
  allowHttp: boolean;
  allowedRanges: readonly AddressRange[];
}

/** @throws RangeError for what is neither an address nor a network */
export function parseRanges(_cidrs: readonly string[]): AddressRange[] {
  return [];
}

export function isPublicAddress(_address: string, _allowed: readonly AddressRange[]): boolean {
  return false;
}

/**
 * A URL as it may be registered and called; names in it still have to be resolved and their addresses checked.
 * @throws Problem `validation_failed` with path `body.url`
 */
export function requireSendableUrl(url: string, _rules: EgressRules): URL {
  return new URL(url);
}
