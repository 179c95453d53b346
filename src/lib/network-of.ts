import ipaddr from 'ipaddr.js';

/**
 * The name under which limits by address count a client: an IPv4 address, or the /64 network of an IPv6 address,
 * because one client usually has a whole /64. `unknown` for anything else.
 */
export function networkOf(address: string | undefined): string {
  if (address === undefined || !ipaddr.isValid(address)) return 'unknown';
  const parsed = ipaddr.process(address);
  if (parsed instanceof ipaddr.IPv4) return parsed.toString();
  const network = new ipaddr.IPv6([...parsed.parts.slice(0, 4), 0, 0, 0, 0]);
  return `${network.toString()}/64`;
}
