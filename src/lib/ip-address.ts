import { BlockList, isIP, isIPv4, isIPv6 } from 'node:net';

/** The longest text with an address, a zone of 16 characters (`IFNAMSIZ`), brackets and a port. */
const longest = 80;

/**
 * The IP address in the text that proxies and Node give for a client, without port, brackets, zone (RFC 4007 section
 * 11) and white space. Undefined for anything else, such as `unknown` (RFC 7239 section 6.2) or the empty text of a
 * Unix socket.
 */
export function clientAddress(text: string | null | undefined): string | undefined {
  if (text == null || text.length > longest) return undefined;
  if (isIPv4(text)) return text;
  const trimmed = text.trim();
  const [, bracketed, withPort] = /^(?:\[([^\]]*)\](?::\d{1,5})?|([\d.]+):\d{1,5})$/.exec(trimmed) ?? [];
  const address = (bracketed ?? withPort ?? trimmed).split('%', 1)[0] ?? '';
  return isIP(address) === 0 ? undefined : address;
}

/** The same, with an IPv4-mapped IPv6 address as its IPv4 address. */
export function plainAddress(text: string | null | undefined): string | undefined {
  const address = clientAddress(text);
  return address === undefined ? undefined : unmapped(address);
}

/** Bits before the IPv4 address in `::ffff:0:0/96`. */
const mappedPrefix = 96;

/** The IPv4 address of an IPv4-mapped IPv6 address (RFC 4291 section 2.5.5.2). Other addresses stay as they are. */
export function unmapped(address: string): string {
  if (!isIPv6(address)) return address;
  const { hostname } = new URL(`http://[${address}]`);
  const [, high, low] = /^\[::ffff:([0-9a-f]{1,4}):([0-9a-f]{1,4})\]$/.exec(hostname) ?? [];
  if (high === undefined || low === undefined) return address;
  const [first, second] = [Number.parseInt(high, 16), Number.parseInt(low, 16)];
  return [first >> 8, first & 255, second >> 8, second & 255].join('.');
}

/** Mapped networks that are wider than a /8 of IPv4 are never intended. */
const widestMapped = mappedPrefix + 8;

/**
 * Parses an entry of an allow list: an address or a network; mapped IPv4 becomes IPv4. @returns the entry, or its
 * problem
 */
export function readAllowed(entry: string): string | { problem: string } {
  const [address = '', bits, ...more] = entry.split('/');
  const version = address.includes('%') ? 0 : isIP(address);
  const isNetwork =
    bits !== undefined && /^(0|[1-9][0-9]{0,2})$/.test(bits) && Number(bits) <= (version === 4 ? 32 : 128);
  if (version === 0 || more.length > 0 || (bits !== undefined && !isNetwork)) {
    return { problem: 'must be an IPv4 or IPv6 address or a network such as 10.0.0.0/8' };
  }
  const plain = unmapped(address);
  if (bits === undefined) return plain;
  if (plain !== address && Number(bits) < widestMapped) return { problem: mappedTooWide(plain, Number(bits)) };
  const prefix = plain === address ? Number(bits) : Number(bits) - mappedPrefix;
  if (prefix === 0 && !/^[0:.]+$/.test(plain)) {
    const all = version === 4 ? '0.0.0.0/0' : '::/0';
    return {
      problem: `would mean ${all}, every ${version === 4 ? 'IPv4' : 'IPv6'} address; if that is intended, write ${all}`,
    };
  }
  return `${plain}/${prefix}`;
}

function mappedTooWide(ipv4: string, bits: number): string {
  const instead = `write the intended IPv4 network, such as ${ipv4}/32`;
  if (bits < mappedPrefix) return `would mean an IPv6 network without any IPv4 client; ${instead}`;
  const prefix = bits - mappedPrefix;
  if (prefix === 0) return `would mean 0.0.0.0/0, every IPv4 address; ${instead}`;
  const part = 2 ** prefix;
  return `would mean an IPv4 network with the prefix /${prefix}, 1 of ${part} of all IPv4 addresses; ${instead}`;
}

/**
 * Matches addresses and networks separately by family: a BlockList treats IPv4 as part of IPv6, so `::/0` would match
 * all of IPv4.
 */
export type Networks = Readonly<Record<'ipv4' | 'ipv6', BlockList>>;

/** @param entries as returned by `readAllowed` */
export function toNetworks(entries: readonly string[]): Networks {
  const networks = { ipv4: new BlockList(), ipv6: new BlockList() };
  for (const entry of entries) {
    const [address = '', bits] = entry.split('/');
    const family = familyOf(address);
    const prefix = bits === undefined ? (family === 'ipv4' ? 32 : 128) : Number(bits);
    networks.ipv6.addSubnet(address, prefix, family);
    if (family === 'ipv4' || prefix >= mappedPrefix) networks.ipv4.addSubnet(address, prefix, family);
  }
  return networks;
}

/** @param address an IPv4-mapped address as IPv4 */
export function isWithin(networks: Networks, address: string): boolean {
  const family = familyOf(address);
  return networks[family].check(address, family);
}

function familyOf(address: string): 'ipv4' | 'ipv6' {
  return isIPv4(address) ? 'ipv4' : 'ipv6';
}
