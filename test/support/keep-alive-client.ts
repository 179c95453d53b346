import { Agent, type IncomingHttpHeaders, request } from 'node:http';

export interface KeptReply {
  status: number;
  headers: IncomingHttpHeaders;
  body: string;
}

export interface KeptRequest {
  method?: string;
  token?: string;
  body?: unknown;
  headers?: Record<string, string>;
}

/** A client with one connection, which it keeps as long as the server allows. */
export interface KeepAliveClient {
  /** @throws if no complete reply arrives */
  send(path: string, options?: KeptRequest): Promise<KeptReply>;
  close(): void;
}

export function keepAliveClient(origin: string): KeepAliveClient {
  const agent = new Agent({ keepAlive: true, maxSockets: 1 });
  return {
    send: (path, { method = 'GET', token, body, headers: extraHeaders = {} } = {}) =>
      new Promise((resolve, reject) => {
        const text = body === undefined ? undefined : JSON.stringify(body);
        const headers = {
          ...extraHeaders,
          ...(token === undefined ? {} : { authorization: `Bearer ${token}` }),
          ...(text === undefined
            ? {}
            : { 'content-type': 'application/json', 'content-length': Buffer.byteLength(text) }),
        };
        const clientRequest = request(`${origin}${path}`, { agent, method, headers }, (response) => {
          let received = '';
          response.on('data', (chunk) => {
            received += String(chunk);
          });
          response.on('error', reject);
          response.on('end', () => {
            resolve({ status: response.statusCode ?? 0, headers: response.headers, body: received });
          });
        });
        clientRequest.on('error', reject);
        clientRequest.end(text);
      }),
    close: () => agent.destroy(),
  };
}
