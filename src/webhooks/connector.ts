import { isIP } from 'node:net';
import { validationProblem } from '../domain/errors.ts';
import { abortable } from '../lib/deadline.ts';
import { DeliveryFailed, type DeliveryFailure } from './delivery-failed.ts';
import { createDnsLookup, type Lookup } from './name-lookup.ts';
import { type EgressRules, hostOf, isPublicAddress, isThisMachine, requireSendableUrl } from './public-address.ts';
import { exchange, type WebhookReply } from './reply.ts';
import { connectToFirst, secure } from './sockets.ts';

export interface WebhookClientOptions extends EgressRules {
  /** For the whole exchange, from the lookup to the end of the reply. 15,000 unless told. */
  timeoutMs?: number;
  /** Bytes of the reply's body that are read at most. 16,384 unless told. */
  replyLimitBytes?: number;
  /** DNS unless told. */
  lookup?: Lookup;
  /** Certificates in PEM that are trusted instead of Node's own. */
  ca?: string;
}

export interface WebhookClient {
  /**
   * Whether a URL may be registered: its form, and every address that its name has now.
   * @throws Problem `validation_failed` with path `body.url`, also where the name cannot be resolved within 5 s
   */
  checkUrl(url: string): Promise<void>;
  /**
   * One attempt, with all checks again, on a connection of its own. Redirects are replies like others.
   * @throws DeliveryFailed; any other error means that the client was closed meanwhile, and says nothing of the endpoint
   */
  post(url: string, headers: Record<string, string>, body: string): Promise<WebhookReply>;
  /** Ends what is under way and waits for its end. */
  close(): Promise<void>;
}

/** Somebody waits for the answer to a registration. */
const checkTimeoutMs = 5_000;

const ownHeaders = { 'content-type': 'application/json', 'user-agent': 'Latchkey-Webhooks' };

/** The one way in which requests leave Latchkey for places that its users name. */
export function createWebhookClient(options: WebhookClientOptions): WebhookClient {
  const { timeoutMs = 15_000, replyLimitBytes = 16_384, lookup = createDnsLookup(), ca, ...rules } = options;
  const underWay = new Map<AbortController, Promise<unknown>>();
  const closed = new AbortController();

  return {
    async checkUrl(text) {
      const url = requireSendableUrl(text, rules);
      await within(Math.min(timeoutMs, checkTimeoutMs), (signal) => checkedAddresses(url, signal)).catch((error) => {
        if (!(error instanceof DeliveryFailed)) throw error;
        if (isIP(hostOf(url)) !== 0) throw validationProblem('body.url', 'must lead to a public address');
        // One message for both: what the names of an internal net are is nobody's business.
        throw validationProblem(
          'body.url',
          'must lead to a public address; this one does not, or its name cannot be resolved',
        );
      });
    },
    async post(text, headers, body) {
      const startedMs = performance.now();
      const durationMs = () => Math.round(performance.now() - startedMs);
      const request = { headers: { ...ownHeaders, ...headers }, body };
      try {
        const reply = await within(timeoutMs, (signal) => attempt(text, request, signal));
        return { ...reply, durationMs: durationMs() };
      } catch (error) {
        if (error instanceof DeliveryFailed) error.durationMs = durationMs();
        throw error;
      }
    },
    async close() {
      closed.abort(new Error('The client of the webhooks is closed.'));
      for (const controller of underWay.keys()) controller.abort(closed.signal.reason);
      await Promise.allSettled(underWay.values());
    },
  };

  async function attempt(
    text: string,
    request: { headers: Record<string, string>; body: string },
    signal: AbortSignal,
  ) {
    const url = sendable(text);
    const addresses = await checkedAddresses(url, signal);
    const isSecure = url.protocol === 'https:';
    const port = Number(url.port || (isSecure ? 443 : 80));
    const { allowedRanges } = rules;
    const socket = await orFail('connect_failed', connectToFirst(addresses, { port, allowedRanges, signal }));
    try {
      const secured = isSecure ? await orFail('tls_failed', secure(socket, hostOf(url), ca)) : socket;
      return await orFail('reply_broken', exchange(secured, { url, ...request, replyLimitBytes, signal }));
    } finally {
      socket.destroy();
    }
  }

  function sendable(text: string): URL {
    try {
      return requireSendableUrl(text, rules);
    } catch (error) {
      throw new DeliveryFailed('url_refused', error);
    }
  }

  /** Those that answer by IPv4 first: a machine without IPv6 loses no time. */
  async function checkedAddresses(url: URL, signal: AbortSignal): Promise<string[]> {
    const host = hostOf(url);
    if (isThisMachine(host)) throw new DeliveryFailed('address_refused');
    const found = isIP(host) === 0 ? await orFail('dns_failed', lookup(host, signal)) : [host];
    const addresses = [...new Set(found)].sort((one, other) => isIP(one) - isIP(other));
    if (addresses.length === 0) throw new DeliveryFailed('dns_failed');
    const refused = addresses.filter((address) => !isPublicAddress(address, rules.allowedRanges));
    if (refused.length > 0) throw new DeliveryFailed('address_refused', new Error(`Refused: ${refused.join(', ')}`));
    return addresses;
  }

  /** Work that is over, one way or the other, when its time is up or the client is closed. */
  async function within<Result>(limitMs: number, work: (signal: AbortSignal) => Promise<Result>): Promise<Result> {
    closed.signal.throwIfAborted();
    const controller = new AbortController();
    const { signal } = controller;
    const timer = setTimeout(() => controller.abort(new DeliveryFailed('timed_out')), limitMs);
    const result = abortable(work(signal), signal).finally(() => {
      clearTimeout(timer);
      underWay.delete(controller);
    });
    underWay.set(controller, result);
    return result;
  }
}

/** Names what failed by the step in which it did. */
async function orFail<Result>(reason: DeliveryFailure, step: Promise<Result>): Promise<Result> {
  try {
    return await step;
  } catch (error) {
    throw error instanceof DeliveryFailed ? error : new DeliveryFailed(reason, error);
  }
}
