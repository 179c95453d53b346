import { createServer, type IncomingHttpHeaders, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import type { Test } from 'tap';
import { readEvent } from '../../src/history/views.ts';
import { startJobs } from '../../src/jobs/runner.ts';
import { createLogger } from '../../src/service/logger.ts';
import { createWebhookClient } from '../../src/webhooks/connector.ts';
import { enqueueDeliveries, type SendPayload, sendTask } from '../../src/webhooks/enqueue-deliveries.ts';
import { audienceOf, payloadFor } from '../../src/webhooks/payload.ts';
import { parseRanges } from '../../src/webhooks/public-address.ts';
import { startWebhookSender, type WebhookSender } from '../../src/webhooks/sender.ts';
import type { Json, TestService } from './app.ts';
import { dbQuery } from './database.ts';

/** A call as it arrived, byte for byte. */
export interface Received {
  path: string;
  headers: IncomingHttpHeaders;
  body: Buffer;
  at: number;
  json: Json;
}

export interface Receiver {
  /** An http URL on this machine, which the test's service allows. */
  url: string;
  received: Received[];
  /** The reply to the next calls. */
  reply: (call: Received, response: ServerResponse) => void;
}

export const idOf = ({ headers }: Received) => String(headers['webhook-id']);

/** A receiver on a real socket. */
export async function startReceiver(t: Test): Promise<Receiver> {
  const receiver: Receiver = { url: '', received: [], reply: (_call, response) => void response.writeHead(204).end() };
  const server = createServer(async (request, response) => {
    const chunks: Buffer[] = [];
    for await (const chunk of request) chunks.push(chunk);
    const body = Buffer.concat(chunks);
    const json = JSON.parse(body.toString('utf8'));
    const call = { path: request.url ?? '', headers: request.headers, body, at: performance.now(), json };
    receiver.received.push(call);
    receiver.reply(call, response);
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  t.teardown(() => {
    server.closeAllConnections();
    return new Promise((resolve) => server.close(resolve));
  });
  receiver.url = `http://127.0.0.1:${(server.address() as AddressInfo).port}/hook`;
  return receiver;
}

export const localEgress = { allowHttp: true, allowedRanges: parseRanges(['127.0.0.0/8']) };

/** The sender and its job queue, as in a service. They are closed when the test ends. */
export function startSending(
  t: Test,
  service: Pick<TestService, 'urls' | 'keyring' | 'clock'>,
  { timeoutMs = 15_000 } = {},
): WebhookSender & { logLines: string[] } {
  const logLines: string[] = [];
  const logger = createLogger({
    level: 'debug',
    tokenPrefix: 'lk',
    destination: { write: (line) => void logLines.push(line) },
  });
  const { urls, keyring, clock } = service;
  const shared = { url: urls.app, keyring, clock, onAppended: enqueueDeliveries, logger };
  const client = createWebhookClient({ ...localEgress, timeoutMs });
  const sender = startWebhookSender({ ...shared, tokenPrefix: 'lk', client });
  const runner = startJobs({
    ...shared,
    jobs: [],
    tasks: { [sendTask]: (payload) => sender.wake((payload as SendPayload).organizationId) },
    settings: { usageHourlyDays: 35, retentionSeconds: 2_592_000 },
  });
  const close = async () => void (await Promise.all([runner.close(), sender.close()]));
  t.teardown(close);
  return { wake: sender.wake, close, logLines };
}

/** Creates an endpoint, and fails if it is rejected. */
export async function makeWebhook({ admin }: Pick<TestService, 'admin'>, input: Json): Promise<Json> {
  const { status, body } = await admin.post('/v1/webhooks', { events: ['*'], ...input });
  if (status !== 201) throw new Error(JSON.stringify(body));
  return body;
}

export async function deliveriesOf({ admin }: Pick<TestService, 'admin'>, { id }: Json): Promise<Json[]> {
  return (await admin.get(`/v1/webhooks/${id}/deliveries?limit=200`)).body.data;
}

/** The bodies of an endpoint's deliveries, sent or pending, oldest first. */
export async function bodiesFor({ urls }: Pick<TestService, 'urls'>, { id }: Json, action: string): Promise<string[]> {
  const rows = await dbQuery(
    urls.app,
    `select endpoint.partner_id, event.canonical from webhook_deliveries as delivery
       join webhook_endpoints as endpoint on endpoint.id = delivery.endpoint_id
       join history as event on event.chain = endpoint.organization_id and event.sequence = delivery.sequence
     where endpoint.id = $1 and delivery.action = $2 order by delivery.id`,
    [id, action],
  );
  return rows.map(({ partner_id: partnerId, canonical }) => {
    const event = readEvent({ canonical: String(canonical) });
    if (event === undefined) throw new Error(`not an event: ${String(canonical)}`);
    return payloadFor(audienceOf(partnerId as string | null), event);
  });
}
