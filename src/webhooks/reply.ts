import type { IncomingHttpHeaders } from 'node:http';
import type { Socket } from 'node:net';
import { type buildConnector, Client } from 'undici';

export interface WebhookReply {
  status: number;
  /** From `Retry-After` in either form; null if missing or not understood. */
  retryAfterSeconds: number | null;
  /** The part of the body that was read. Invalid UTF-8 and U+0000 become U+FFFD. */
  body: string;
  durationMs: number;
}

interface Exchange {
  url: URL;
  headers: Record<string, string>;
  body: string;
  replyLimitBytes: number;
  signal: AbortSignal;
}

const headerLimitBytes = 16_384;

/**
 * Sends one request on a dedicated connection. undici's Client follows no redirects, inflates nothing and uses no
 * proxy.
 */
export async function exchange(socket: Socket, options: Exchange): Promise<Omit<WebhookReply, 'durationMs'>> {
  const { url, headers, body, replyLimitBytes, signal } = options;
  const client = new Client(url.origin, {
    connect: onlyOnce(socket),
    maxHeaderSize: headerLimitBytes,
    allowH2: false,
    // The signal limits the whole exchange.
    headersTimeout: 0,
    bodyTimeout: 0,
  });
  try {
    const path = url.pathname + url.search;
    const reply = await client.request({ method: 'POST', path, headers, body, signal, reset: true });
    return {
      status: reply.statusCode,
      retryAfterSeconds: retryAfterSecondsOf(reply.headers, new Date()),
      body: await readText(reply.body, replyLimitBytes),
    };
  } finally {
    await client.destroy();
  }
}

/** Prevents undici from reconnecting if the connection ends before the request is sent. */
function onlyOnce(socket: Socket): buildConnector.connector {
  let isTaken = false;
  return (_options, callback) => {
    const wasTaken = isTaken;
    isTaken = true;
    // Asynchronous, because the client expects no callback during its call.
    queueMicrotask(() => (wasTaken ? callback(new Error('The connection is gone.'), null) : callback(null, socket)));
  };
}

async function readText(body: AsyncIterable<Uint8Array>, limitBytes: number): Promise<string> {
  const chunks: Uint8Array[] = [];
  let length = 0;
  for await (const chunk of body) {
    chunks.push(chunk);
    length += chunk.length;
    if (length >= limitBytes) break;
  }
  const bytes = Buffer.concat(chunks).subarray(0, limitBytes);
  return new TextDecoder().decode(bytes).replaceAll('\u0000', '\ufffd');
}

const httpDate = /^[A-Z][a-z]{2}, \d{2} [A-Z][a-z]{2} \d{4} \d{2}:\d{2}:\d{2} GMT$/;

/** RFC 9110 section 10.2.3: seconds, or a date in the IMF-fixdate form. */
export function retryAfterSecondsOf(headers: IncomingHttpHeaders, now: Date): number | null {
  const value = [headers['retry-after']].flat()[0]?.trim() ?? '';
  if (/^\d{1,9}$/.test(value)) return Number(value);
  const untilMs = httpDate.test(value) ? Date.parse(value) : Number.NaN;
  return Number.isNaN(untilMs) ? null : Math.max(0, Math.ceil((untilMs - now.getTime()) / 1000));
}
