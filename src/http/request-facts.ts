import type { FastifyRequest } from 'fastify';
import fp from 'fastify-plugin';
import type { SecretText } from '../crypto/secret-text.ts';
import type { RequestFacts } from '../domain/actor.ts';
import { isWithin, type Networks, plainAddress, toNetworks } from '../lib/ip-address.ts';
import { connectionOf } from './server.ts';

declare module 'fastify' {
  interface FastifyRequest {
    /** Who sent it, taken on arrival and always valid. Fastify's `ip` is read late, when the client may be gone. */
    facts: RequestFacts;
  }
}

interface RequestFactsOptions {
  /** Addresses or networks of proxies whose X-Forwarded-For is believed; false: of none. */
  trustProxy: string[] | false;
}

const userAgentCharacters = 512;

/** Captures the facts of each request in the first hook of all. What needs them later takes them from `request.facts`. */
export const requestFacts = fp<RequestFactsOptions>(
  async (app, { trustProxy }) => {
    const proxies = trustProxy === false ? undefined : toNetworks(trustProxy);
    app.decorateRequest('facts');
    app.addHook('onRequest', (request, _reply, done) => {
      request.facts = capture(request, proxies, app.secretText);
      done();
    });
  },
  { name: 'request-facts' },
);

/** What of a request goes into history and logs: valid, bounded, never undefined. */
function capture(
  { id, raw: { socket, headers } }: FastifyRequest,
  proxies: Networks | undefined,
  secrets: SecretText,
): RequestFacts {
  const peer = connectionOf(socket)?.address ?? plainAddress(socket.remoteAddress) ?? unknownAddress;
  return {
    id,
    ip: believedAddress(peer, headers['x-forwarded-for'], proxies),
    userAgent: clean(headers['user-agent'], secrets),
  };
}

/** RFC 1122 section 3.2.1.3: a host that does not know its own address. It is in no network that anybody would allow. */
const unknownAddress = '0.0.0.0';

/** From hop to hop, the nearest one first, while they are trusted. What holds no address ends the walk. */
function believedAddress(
  peer: string,
  forwarded: string | string[] | undefined,
  proxies: Networks | undefined,
): string {
  if (proxies === undefined || forwarded === undefined) return peer;
  let client = peer;
  for (const hop of String(forwarded).split(',').reverse()) {
    if (!isWithin(proxies, client)) break;
    const address = plainAddress(hop);
    if (address === undefined) break;
    client = address;
  }
  return client;
}

/** What a header may put into history: bounded, and free of tokens and of what JSON or Postgres would reject. */
function clean(header: string | undefined, { redact }: SecretText): string | null {
  if (header === undefined) return null;
  return redact(header).toWellFormed().replaceAll('\u0000', '').slice(0, userAgentCharacters).toWellFormed();
}
