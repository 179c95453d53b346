import type { EgressRules } from './public-address.ts';

export { DeliveryFailed } from './delivery-failed.ts';

/** All addresses of a name. @throws what the resolver throws */
export type Lookup = (name: string, signal: AbortSignal) => Promise<readonly string[]>;

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

export interface WebhookReply {
  status: number;
  /** From `Retry-After` in either form; null where it is missing or not understood. */
  retryAfterSeconds: number | null;
  /** As much of the body as was read, as text; what is not UTF-8, and U+0000, are U+FFFD. */
  body: string;
  durationMs: number;
}

export interface WebhookClient {
  /**
   * Whether a URL may be registered: its form, and every address that its name has now.
   * @throws Problem `validation_failed` with path `body.url`, also where the name cannot be resolved
   */
  checkUrl(url: string): Promise<void>;
  /**
   * One attempt. Redirects are replies like others.
   * @throws DeliveryFailed; any other error means that the client was closed meanwhile, and says nothing of the endpoint
   */
  post(url: string, headers: Record<string, string>, body: string): Promise<WebhookReply>;
  /** Ends what is under way and waits for its end. */
  close(): Promise<void>;
}

export function createWebhookClient(_options: WebhookClientOptions): WebhookClient {
  return {
    async checkUrl() {},
    async post() {
      return { status: 204, retryAfterSeconds: null, body: '', durationMs: 0 };
    },
    async close() {},
  };
}
