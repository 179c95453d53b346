import type { FastifyReply, FastifyRequest } from 'fastify';
import fp from 'fastify-plugin';
import { presentedTexts } from '../credentials/presented.ts';
import { holdsCredential, type SecretText, withoutCredential } from '../crypto/secret-text.ts';
import type { RequestFacts } from '../domain/actor.ts';
import { isWithin, type Networks, plainAddress, toNetworks } from '../lib/ip-address.ts';
import { connectionOf } from './server.ts';

declare module 'fastify' {
  interface FastifyRequest {
    /** Captured on arrival and always valid. Fastify reads `ip` later, when the connection may be gone. */
    facts: RequestFacts;
  }
}

interface RequestFactsOptions {
  /** Addresses or networks of proxies whose X-Forwarded-For is trusted; false: none. */
  trustProxy: string[] | false;
}

const userAgentCharacters = 512;

/** Captures the facts of each request in the first hook. */
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

/** The facts for history and logs. */
function capture({ id, raw }: FastifyRequest, proxies: Networks | undefined, secrets: SecretText): RequestFacts {
  const { socket, headers } = raw;
  const peer = connectionOf(socket)?.address ?? plainAddress(socket.remoteAddress) ?? unknownAddress;
  return {
    id,
    ip: clientAddressFrom(peer, headers['x-forwarded-for'], proxies),
    userAgent: sanitize(headers['user-agent'], (text) => withoutPresented(raw, secrets.redact(text))),
  };
}

/** The path of a request, without its query. */
export function pathOf({ raw }: Pick<FastifyRequest, 'raw'>): string {
  return raw.url?.split('?', 1)[0] ?? '/';
}

/** Removes the credential of a request, which may have any form, from a header that is recorded. */
export function withoutPresented(raw: Parameters<typeof presentedTexts>[0], text: string): string {
  return presentedTexts(raw).reduce(withoutCredential, text);
}

/** The same for a key that was presented in the body. */
export function removeFromFacts(key: string, request: FastifyRequest, reply: FastifyReply): void {
  const { id, facts } = request;
  if (holdsCredential(id, key)) {
    request.id = withoutCredential(id, key);
    reply.header('x-request-id', request.id);
  }
  const { userAgent } = facts;
  if (request.id !== id || (userAgent !== null && holdsCredential(userAgent, key))) {
    request.facts = { ...facts, id: request.id, userAgent: userAgent && withoutCredential(userAgent, key) };
  }
}

/** RFC 1122 section 3.2.1.3: the address of a host that does not know its own. No allowlist contains it. */
const unknownAddress = '0.0.0.0';

/** Follows X-Forwarded-For from the nearest hop while hops are trusted; stops at the first text without an address. */
function clientAddressFrom(
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

/** Makes a header storable: bounded, without tokens and without characters that JSON or Postgres reject. */
function sanitize(header: string | undefined, redact: (text: string) => string): string | null {
  if (header === undefined) return null;
  return redact(header).toWellFormed().replaceAll('\u0000', '').slice(0, userAgentCharacters).toWellFormed();
}
