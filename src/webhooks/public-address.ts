import { isIP } from 'node:net';
import ipaddr from 'ipaddr.js';
import { validationProblem } from '../domain/errors.ts';

/** A network whose addresses may be called although they are not public. */
export type AddressRange = readonly [ipaddr.IPv4 | ipaddr.IPv6, number];

/** What an installation lets webhooks reach. */
export interface EgressRules {
  /** Plain http besides https. */
  allowHttp: boolean;
  allowedRanges: readonly AddressRange[];
}

const urlLengthLimit = 2_048;

/** @throws RangeError for what is neither an address nor a network */
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
 * Whether everybody on the Internet means the same place by an address, by IANA's registries of special-purpose
 * addresses, or an installation has opened it. A range opens addresses of its own family only.
 * @param address as the system writes addresses; anything else, and one with a zone, is not public
 */
export function isPublicAddress(address: string, allowed: readonly AddressRange[]): boolean {
  if (isIP(address) === 0 || address.includes('%')) return false;
  const parsed = ipaddr.parse(address);
  return isGloballyReachable(parsed) || allowed.some((range) => contains(range, parsed));
}

const [azureHost, globalUnicast] = parseRanges(['168.63.129.16', '2000::/3']) as [AddressRange, AddressRange];

/**
 * ipaddr.js knows the special ranges of both families. It does not know the address at which each machine at Azure finds
 * its host, nor that IPv6 has nothing public outside of 2000::/3: IPv4-compatible addresses, 100:0:0:1::/64, and whatever
 * is yet to be assigned. What carries an IPv4 address (mapped, NAT64, 6to4, Teredo) is special there, whichever it carries.
 */
function isGloballyReachable(address: ipaddr.IPv4 | ipaddr.IPv6): boolean {
  if (address.range() !== 'unicast') return false;
  return address.kind() === 'ipv4' ? !contains(azureHost, address) : contains(globalUnicast, address);
}

function contains([network, prefixLength]: AddressRange, address: ipaddr.IPv4 | ipaddr.IPv6): boolean {
  return network.kind() === address.kind() && address.match(network, prefixLength);
}

/**
 * A URL whose form lets it be registered and called. The WHATWG parser has written its host in one way by then: names in
 * ASCII and lower case, IPv4 addresses in decimal whatever way they were spelled. Where it leads is still to be checked,
 * an address in it as well as those of a name.
 * @throws Problem `validation_failed` with path `body.url`
 */
export function requireSendableUrl(text: string, rules: Pick<EgressRules, 'allowHttp'>): URL {
  const url = parseUrl(text);
  const message = url === undefined ? 'must be a URL, with no blanks in it' : objectionTo(url, text, rules);
  if (url === undefined || message !== undefined) throw validationProblem('body.url', message ?? '');
  return url;
}

/** The parser would drop tabs and line ends, and read slashes into what has none. */
function parseUrl(text: string): URL | undefined {
  const isWhole = /^[a-z][a-z0-9+.-]*:\/\/[^\s\p{Cc}\\]+$/iu.test(text);
  return isWhole && URL.canParse(text) ? new URL(text) : undefined;
}

function objectionTo(url: URL, text: string, { allowHttp }: Pick<EgressRules, 'allowHttp'>): string | undefined {
  if (text.length > urlLengthLimit || url.href.length > urlLengthLimit) {
    return `must have at most ${urlLengthLimit} characters`;
  }
  if (url.protocol !== 'https:' && !(allowHttp && url.protocol === 'http:')) return 'must begin with https://';
  if (url.username !== '' || url.password !== '') return 'must not have a user or a password in it';
  if (url.href.includes('#')) return 'must not have a fragment';
  if (url.hostname.endsWith('.')) return 'must not have a dot behind the name';
  return undefined;
}

/** RFC 6761 section 6.3: these names are this machine, whatever a name server says of them. */
export function isThisMachine(host: string): boolean {
  return host === 'localhost' || host.endsWith('.localhost');
}

/** The host of a URL as addresses are written elsewhere: an IPv6 address without its brackets. */
export function hostOf(url: URL): string {
  return url.hostname.replace(/^\[(.*)\]$/, '$1');
}
