import type { Test } from 'tap';
import { createWebhookClient, type WebhookClient, type WebhookClientOptions } from '../../src/webhooks/connector.ts';
import { parseRanges } from '../../src/webhooks/public-address.ts';

/** A client that may use http and reach the given networks. It is closed when the test ends. */
export function startWebhookClient(
  t: Test,
  { opened = [], ...options }: Partial<WebhookClientOptions> & { opened?: string[] } = {},
): WebhookClient {
  const client = createWebhookClient({
    allowHttp: true,
    allowedRanges: parseRanges(opened),
    timeoutMs: 10_000,
    ...options,
  });
  t.teardown(() => client.close());
  return client;
}

/** The error of an attempt; undefined if it succeeded. */
export function failureOf(attempt: Promise<unknown>): Promise<unknown> {
  return attempt.then(
    () => undefined,
    (error: unknown) => error,
  );
}
