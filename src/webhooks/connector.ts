import { isIP } from 'node:net';
import { validationProblem } from '../domain/errors.ts';
import { abortable } from '../lib/deadline.ts';
import { DeliveryFailed, type DeliveryFailure } from './delivery-failed.ts';
import { createDnsLookup, type Lookup } from './name-lookup.ts';
import { type EgressRules, hostOf, isPublicAddress, isThisMachine, requireSendableUrl } from './public-address.ts';
import { exchange, type WebhookReply } from './reply.ts';
import { connectToFirst, secure } from './sockets.ts';

export interface WebhookClientOptions extends EgressRules {
  /** Limit for the whole exchange, from DNS lookup to the end of the reply. Default: 15,000. */
  timeoutMs?: number;
  /** The number of bytes of the reply's body that are read. Default: 16,384. */
  replyLimitBytes?: number;
  /** Default: DNS. */
  lookup?: Lookup;
  /** PEM certificates to trust instead of Node's own. */
  ca?: string;
}

export interface WebhookClient {
  /**
   * Checks that a URL may be registered: its form, and every address that its name currently has.
   * @throws Problem `validation_failed` with path `body.url`, also if the name cannot be resolved within 5 s
   */
  checkUrl(url: string): Promise<void>;
  /**
   * Sends one request on its own connection, after checking the URL again. Redirects are not followed.
   * @throws DeliveryFailed; any other error means that the client was closed meanwhile
   */
  post(url: string, headers: Record<string, string>, body: string): Promise<WebhookReply>;
  /** Aborts running requests and waits for their end. */
  close(): Promise<void>;
}

/** Shorter than `timeoutMs`, because a caller is waiting. */
const checkTimeoutMs = 5_000;

const ownHeaders = { 'content-type': 'application/json', 'user-agent': 'Latchkey-Webhooks' };

/** The only client for URLs that users of Latchkey configure. */
export function createWebhookClient(options: WebhookClientOptions): WebhookClient {
  const { timeoutMs = 15_000, replyLimitBytes = 16_384, lookup = createDnsLookup(), ca, ...rules } = options;
  const running = new Map<AbortController, Promise<unknown>>();
  const closed = new AbortController();

  return {
    async checkUrl(text) {
      const url = requireSendableUrl(text, rules);
      await within(Math.min(timeoutMs, checkTimeoutMs), (signal) => checkedAddresses(url, signal)).catch((error) => {
        if (!(error instanceof DeliveryFailed)) throw error;
        if (isIP(hostOf(url)) !== 0) throw validationProblem('body.url', 'must lead to a public address');
        // One message for both cases, so that callers cannot probe names of an internal network.
        throw validationProblem(
          'body.url',
          'must lead to a public address, but this host does not, or its name cannot be resolved',
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
      closed.abort(new Error('The webhook client is closed.'));
      for (const controller of running.keys()) controller.abort(closed.signal.reason);
      await Promise.allSettled(running.values());
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

  /** IPv4 addresses come first, so that a machine without IPv6 loses no time. */
  async function checkedAddresses(url: URL, signal: AbortSignal): Promise<string[]> {
    const host = hostOf(url);
    if (isThisMachine(host)) throw new DeliveryFailed('address_refused');
    const found = isIP(host) === 0 ? await orFail('dns_failed', lookup(host, signal)) : [host];
    const addresses = [...new Set(found)].sort((one, other) => isIP(one) - isIP(other));
    if (addresses.length === 0) throw new DeliveryFailed('dns_failed');
    const refused = addresses.filter((address) => !isPublicAddress(address, rules.allowedRanges));
    if (refused.length > 0)
      throw new DeliveryFailed('address_refused', new Error(`Not a public address: ${refused.join(', ')}`));
    return addresses;
  }

  /** Aborts work at its time limit or when the client is closed. */
  async function within<Result>(limitMs: number, work: (signal: AbortSignal) => Promise<Result>): Promise<Result> {
    closed.signal.throwIfAborted();
    const controller = new AbortController();
    const { signal } = controller;
    const timer = setTimeout(() => controller.abort(new DeliveryFailed('timed_out')), limitMs);
    const result = abortable(work(signal), signal).finally(() => {
      clearTimeout(timer);
      running.delete(controller);
    });
    running.set(controller, result);
    return result;
  }
}

/** Converts a step's error to DeliveryFailed with the step's reason. */
async function orFail<Result>(reason: DeliveryFailure, step: Promise<Result>): Promise<Result> {
  try {
    return await step;
  } catch (error) {
    throw error instanceof DeliveryFailed ? error : new DeliveryFailed(reason, error);
  }
}
