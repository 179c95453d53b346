import { Resolver } from 'node:dns/promises';

/** All addresses of a name. @throws what the resolver throws */
export type Lookup = (name: string, signal: AbortSignal) => Promise<readonly string[]>;

/** For each of a server's tries; the whole is bounded by the signal. */
const tryMs = 2_000;

/**
 * Asks the DNS servers of this machine. `dns.lookup` would wait in one of the two threads that Node has for it in the
 * whole process: two names whose servers keep silent would hold up every other delivery, and the way to the database.
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
