// biome-ignore lint/suspicious/noExplicitAny: the OpenAPI document describes the replies
export type Reply = any;

/** A minimal HTTP client for Latchkey's API. */
export interface Client {
  get(path: string): Promise<Reply>;
  post(path: string, body?: object): Promise<Reply>;
  patch(path: string, body: object): Promise<Reply>;
  delete(path: string): Promise<Reply>;
}

export function createClient(url: string, token: string): Client {
  const call = async (method: string, path: string, body?: object): Promise<Reply> => {
    const response = await fetch(url + path, {
      method,
      headers: {
        authorization: `Bearer ${token}`,
        'user-agent': 'latchkey-demo',
        ...(body === undefined ? {} : { 'content-type': 'application/json' }),
      },
      ...(body === undefined ? {} : { body: JSON.stringify(body) }),
    });
    const reply: Reply = await response.json();
    if (!response.ok) throw new Error(`${method} ${path} was rejected: ${reply.code}: ${reply.detail}`);
    return reply;
  };
  return {
    get: (path) => call('GET', path),
    post: (path, body) => call('POST', path, body),
    patch: (path, body) => call('PATCH', path, body),
    delete: (path) => call('DELETE', path),
  };
}
