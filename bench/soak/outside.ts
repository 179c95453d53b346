import { once } from 'node:events';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { Webhook } from 'standardwebhooks';
import { createGithubSigner, type GithubSigner } from './holder-stories.ts';

/** The servers that the service calls: the receiver of webhooks, and GitHub's list of public keys. */
export interface Outside {
  url: string;
  github: GithubSigner;
  /** The settings with which the service calls this server. */
  env: Record<string, string>;
  /** Set it to the secret of the webhook with the path `/all`. */
  secret: string;
  /** The sequence numbers of the events that have arrived at `/all`, with the `webhook-id` of each. */
  arrived: Map<number, string>;
  /** Deliveries that were rejected once, and so must arrive a second time. */
  rejected: number;
  flaws: string[];
  close(): Promise<void>;
}

/** One first attempt in this many is rejected. */
const rejectedOneIn = 50;

export async function startOutside(): Promise<Outside> {
  const server = createServer(async (request, response) => {
    if (request.url === '/github') {
      response.end(JSON.stringify({ public_keys: [outside.github.listed] }));
      return;
    }
    const chunks: Buffer[] = [];
    for await (const chunk of request) chunks.push(chunk);
    if (request.url === '/all') {
      response.statusCode = receive(Buffer.concat(chunks).toString(), request.headers as Record<string, string>);
    }
    response.end();
  });
  const rejectedIds = new Set<string>();

  /** @returns the status of the reply */
  function receive(body: string, headers: Record<string, string>): number {
    // The creation of the webhook may arrive before the reply with its secret.
    if (outside.secret === '') return 503;
    try {
      new Webhook(outside.secret).verify(body, headers);
    } catch (error) {
      outside.flaws.push(`${String(error)}: ${body.slice(0, 200)}`);
    }
    const id = String(headers['webhook-id']);
    if (!rejectedIds.has(id) && Math.random() * rejectedOneIn < 1) {
      rejectedIds.add(id);
      outside.rejected += 1;
      return 503;
    }
    const { sequence } = JSON.parse(body).data as { sequence: number };
    const earlier = outside.arrived.get(sequence);
    if (earlier !== undefined && earlier !== id) outside.flaws.push(`event ${sequence} has two ids: ${earlier}, ${id}`);
    outside.arrived.set(sequence, id);
    return 204;
  }

  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
  const outside: Outside = {
    url,
    github: createGithubSigner(),
    env: { GITHUB_KEYS_URL: `${url}/github`, WEBHOOK_ALLOW_HTTP: 'true', WEBHOOK_ALLOW_CIDRS: '127.0.0.1' },
    secret: '',
    arrived: new Map(),
    rejected: 0,
    flaws: [],
    async close() {
      server.closeAllConnections();
      await new Promise((resolve) => server.close(resolve));
    },
  };
  return outside;
}
