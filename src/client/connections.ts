import { StringDecoder } from 'node:string_decoder';
import { Client, type Dispatcher } from 'undici';

/** Where Latchkey is, and who asks. */
export interface Service {
  /** Without a slash at its end; it may have a path. */
  url: string;
  token: string;
  /** How long one call may take. */
  timeoutMs: number;
}

export interface Answer {
  status: number;
  text: string;
}

/** There is no whole answer; the cause says why. */
export class Broken extends Error {
  override readonly name = 'Broken';
  /** Where it was not, nothing has come of the request. */
  readonly wasSent: boolean;
  /** An answer had begun: the request is sure to have arrived. */
  readonly wasAnswered: boolean;

  constructor(cause: Error, wasSent: boolean, wasAnswered: boolean) {
    super(`Latchkey did not answer: ${String(cause)}`, { cause });
    this.wasSent = wasSent;
    this.wasAnswered = wasAnswered;
  }
}

interface Asked {
  method: 'GET' | 'POST';
  /** Below the service's URL. */
  path: string;
  headers: Record<string, string>;
  body?: string;
}

/** Told of an answer as it comes. What it throws ends the request, and is the cause. */
interface Listener {
  onHead(status: number, contentType: string): void;
  onText(text: string): void;
}

/**
 * One connection, which carries one request at a time and is opened when there is one. `dispatch` and no more of undici: all
 * else, and `fetch` and `node:http` as well, make objects for each call that emit events. Node runs the same code for these as
 * for each request of the backend, and the more kinds of them it has seen the longer that takes; see docs/performance.md.
 * @param signal ends what is still being connected too, which destroying the client does not
 */
export function connectTo({ url, timeoutMs }: Service, { signal }: { signal?: AbortSignal } = {}): Client {
  const connect = { timeout: timeoutMs, ...(signal === undefined ? {} : { signal }) };
  return new Client(new URL(url).origin, { connect, headersTimeout: 0, bodyTimeout: 0 });
}

/**
 * Resolves when the answer is whole.
 * @throws Broken, also where the client is destroyed meanwhile
 */
export function send(client: Client, { url, token }: Service, asked: Asked, listener: Listener): Promise<void> {
  const { method, path, headers, body = null } = asked;
  const request: Dispatcher.DispatchOptions = {
    method,
    path: new URL(url + path).pathname,
    // Without a word about it, an answer might come compressed (RFC 9110 section 12.5.3).
    headers: { authorization: `Bearer ${token}`, 'accept-encoding': 'identity', ...headers },
    body,
  };
  return new Promise((resolve, reject) => {
    let wasSent = false;
    let wasAnswered = false;
    // A character may come in two parts.
    const decoder = new StringDecoder('utf8');
    client.dispatch(request, {
      onRequestStart() {
        wasSent = true;
      },
      onResponseStart(_controller, status, answered) {
        wasAnswered = true;
        // What comes before the answer (RFC 9110 section 15.2) is none.
        if (status >= 200) listener.onHead(status, String(answered['content-type'] ?? ''));
      },
      onResponseData(_controller, chunk) {
        listener.onText(decoder.write(chunk));
      },
      onResponseEnd() {
        resolve();
      },
      onResponseError(_controller, error) {
        reject(new Broken(error, wasSent, wasAnswered));
      },
    });
  });
}

/** As many as there are requests at once. They stay open for those that come later. */
export interface Connections {
  /** @throws Broken */
  post(asked: Omit<Asked, 'method'>): Promise<Answer>;
  close(): Promise<void>;
}

export function createConnections(service: Service): Connections {
  const idle: Client[] = [];
  let isClosed = false;
  return {
    async post(asked) {
      const client = idle.pop() ?? connectTo(service);
      const late = new Error(`no answer within ${service.timeoutMs} ms`);
      const timer = setTimeout(() => void client.destroy(late), service.timeoutMs);
      const answer: Answer = { status: 0, text: '' };
      try {
        await send(
          client,
          service,
          { method: 'POST', ...asked },
          {
            onHead(status) {
              answer.status = status;
            },
            onText(text) {
              answer.text += text;
            },
          },
        );
        if (isClosed) void client.destroy();
        else idle.push(client);
        return answer;
      } catch (error) {
        void client.destroy();
        throw error;
      } finally {
        clearTimeout(timer);
      }
    },
    async close() {
      isClosed = true;
      await Promise.all(idle.splice(0).map((client) => client.destroy()));
    },
  };
}
