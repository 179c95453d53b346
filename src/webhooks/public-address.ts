import { isIP } from 'node:net';
import ipaddr from 'ipaddr.js';
import { validationProblem } from '../domain/errors.ts';

/** A network that webhooks may call although it is not public. */
export type AddressRange = readonly [ipaddr.IPv4 | ipaddr.IPv6, number];

/** Which targets an installation allows for webhooks. */
export interface EgressRules {
  /** Also allow plain http. */
  allowHttp: boolean;
  allowedRanges: readonly AddressRange[];
}

const urlLengthLimit = 2_048;

/** Parses addresses and networks. @throws RangeError if one is neither */
export function parseRanges(cidrs: readonly string[]): AddressRange[] {
  return cidrs.map(parseRange);
}

function parseRange(cidr: string): AddressRange {
  const [, text = '', bits] = /^([0-9a-f.:]+)(?:\/([0-9]{1,3}))?$/i.exec(cidr) ?? [];
  if (isIP(text) === 0) throw new RangeError(`${cidr} is neither an address nor a network`);
  const address = ipaddr.parse(text);
  const most = address.kind() === 'ipv4' ? 32 : 128;
  const prefixLength = Number(bits ?? most);
  if (prefixLength > most) throw new RangeError(`${cidr} has more than ${most} bits`);
  return [address, prefixLength];
}

/**
 * Whether an address is globally reachable by IANA's special-purpose registries, or in an allowed range. A range
 * matches addresses of its own family only.
 * @param address as the system writes addresses; anything else, and one with a zone, is not public
 */
export function isPublicAddress(address: string, allowed: readonly AddressRange[]): boolean {
  if (isIP(address) === 0 || address.includes('%')) return false;
  const parsed = ipaddr.parse(address);
  return isGloballyReachable(parsed) || allowed.some((range) => contains(range, parsed));
}

const [azureHost, globalUnicast] = parseRanges(['168.63.129.16', '2000::/3']) as [AddressRange, AddressRange];

/**
 * ipaddr.js knows the special ranges, except two: Azure's host address, and IPv6 outside 2000::/3, where nothing is
 * public. It treats all addresses that embed an IPv4 address (mapped, NAT64, 6to4, Teredo) as special.
 */
function isGloballyReachable(address: ipaddr.IPv4 | ipaddr.IPv6): boolean {
  if (address.range() !== 'unicast') return false;
  return address.kind() === 'ipv4' ? !contains(azureHost, address) : contains(globalUnicast, address);
}

function contains([network, prefixLength]: AddressRange, address: ipaddr.IPv4 | ipaddr.IPv6): boolean {
  return network.kind() === address.kind() && address.match(network, prefixLength);
}

/**
 * Checks a URL's form for registration and calls. The WHATWG parser has normalized its host by then (lower-case ASCII
 * names, decimal IPv4). The addresses behind it must still be checked.
 * @throws Problem `validation_failed` with path `body.url`
 */
export function requireSendableUrl(text: string, rules: Pick<EgressRules, 'allowHttp'>): URL {
  const url = parseUrl(text);
  const message = url === undefined ? 'must be a URL without blanks' : objectionTo(url, text, rules);
  if (url === undefined || message !== undefined) throw validationProblem('body.url', message ?? '');
  return url;
}

/** The parser would silently drop tabs and line ends, and add missing slashes. */
function parseUrl(text: string): URL | undefined {
  const isWhole = /^[a-z][a-z0-9+.-]*:\/\/[^\s\p{Cc}\\]+$/iu.test(text);
  return isWhole && URL.canParse(text) ? new URL(text) : undefined;
}

function objectionTo(url: URL, text: string, { allowHttp }: Pick<EgressRules, 'allowHttp'>): string | undefined {
  if (text.length > urlLengthLimit || url.href.length > urlLengthLimit) {
    return `must have at most ${urlLengthLimit} characters`;
  }
  if (url.protocol !== 'https:' && !(allowHttp && url.protocol === 'http:')) return 'must begin with https://';
  if (url.username !== '' || url.password !== '') return 'must not contain a user or a password';
  if (url.href.includes('#')) return 'must not have a fragment';
  if (url.hostname.endsWith('.')) return 'must not have a dot after the host name';
  return undefined;
}

/** RFC 6761 section 6.3: these names always mean this machine. */
export function isThisMachine(host: string): boolean {
  return host === 'localhost' || host.endsWith('.localhost');
}

/** The host of a URL; an IPv6 address without brackets. */
export function hostOf(url: URL): string {
  return url.hostname.replace(/^\[(.*)\]$/, '$1');
}
