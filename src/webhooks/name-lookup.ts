import { Resolver } from 'node:dns/promises';

/** Resolves all addresses of a name. @throws what the resolver throws */
export type Lookup = (name: string, signal: AbortSignal) => Promise<readonly string[]>;

/** Limit for each try; the signal limits the whole lookup. */
const tryMs = 2_000;

/**
 * Queries the DNS servers of this machine. `dns.lookup` would use the few threads that the whole process shares for it:
 * slow name servers could block all other deliveries and database connections.
 */
export function createDnsLookup(servers?: readonly string[]): Lookup {
  return async (name, signal) => {
    const resolver = new Resolver({ timeout: tryMs, tries: 2 });
    if (servers !== undefined) resolver.setServers(servers);
    const cancel = () => resolver.cancel();
    signal.addEventListener('abort', cancel);
    try {
      const answers = await Promise.allSettled([resolver.resolve4(name), resolver.resolve6(name)]);
      const addresses = answers.flatMap((answer) => (answer.status === 'fulfilled' ? answer.value : []));
      const refused = answers.find((answer) => answer.status === 'rejected');
      if (addresses.length === 0 && refused !== undefined) throw refused.reason;
      return addresses;
    } finally {
      signal.removeEventListener('abort', cancel);
    }
  };
}
