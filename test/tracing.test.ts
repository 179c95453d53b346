import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import type { Test } from 'tap';
import { parseTraceparent, toTraceparent, traceIdOfRequestId } from '../src/domain/trace.ts';
import { type Json, startService } from './support/app.ts';
import { compiled, eventually, request, run } from './support/process.ts';
import { serve } from './support/served.ts';
import { t } from './support/tap.ts';
import { makeWebhook, startReceiver, startSending } from './support/webhooks.ts';

const traceId = '4bf92f3577b34da6a3ce929d0e0e4736';
const parentId = '00f067aa0ba902b7';
const traceparent = `00-${traceId}-${parentId}-01`;

t.test('only valid values of traceparent continue a trace; others are ignored', async (t) => {
  t.same(parseTraceparent(traceparent), { traceId, spanId: parentId, isSampled: true });
  t.equal(parseTraceparent(`00-${traceId}-${parentId}-02`)?.isSampled, false);
  t.equal(
    parseTraceparent(`cc-${traceId}-${parentId}-01-more`)?.traceId,
    traceId,
    'a later version may have more parts',
  );
  const refused = [
    undefined,
    '',
    'x',
    `ff-${traceId}-${parentId}-01`,
    `${traceparent}-more`,
    `00-${traceId.toUpperCase()}-${parentId}-01`,
    `00-${'0'.repeat(32)}-${parentId}-01`,
    `00-${traceId}-${'0'.repeat(16)}-01`,
    [traceparent, traceparent],
  ];
  for (const header of refused) t.equal(parseTraceparent(header), undefined, String(header));
  t.equal(toTraceparent({ traceId, spanId: parentId, isSampled: true }), traceparent);
  t.equal(traceIdOfRequestId('0f8fad5b-d9cb-469f-a165-70867728950e'), '0f8fad5bd9cb469fa16570867728950e');
  t.match(traceIdOfRequestId('mine'), /^[0-9a-f]{32}$/);
  t.equal(traceIdOfRequestId('mine'), traceIdOfRequestId('mine'));
  t.not(traceIdOfRequestId('mine'), traceIdOfRequestId('yours'));
});

t.test("the caller's trace continues in the reply, the log, the problem and the webhook", async (t) => {
  const service = await startService(t);
  const { admin, logLines } = service;
  const receiver = await startReceiver(t);
  await makeWebhook(service, { url: receiver.url, events: ['key.created'] });
  startSending(t, service);

  const created = await admin.post('/v1/keys', {}, { traceparent });
  const replied = parseTraceparent(created.headers['traceparent']);
  t.equal(replied?.traceId, traceId);
  t.equal(replied?.isSampled, true);
  t.not(replied?.spanId, parentId, 'with a new span id');
  await eventually(async () => receiver.received.length === 1);
  const sent = parseTraceparent(receiver.received[0]?.headers['traceparent']);
  t.equal(sent?.traceId, traceId);
  t.not(sent?.spanId, replied?.spanId);

  const refused = await admin.get('/v1/keys/nothing', { traceparent, 'x-request-id': 'mine' });
  t.match(refused.body, { requestId: 'mine', traceId });
  const lines = logLines.map((line) => JSON.parse(line)).filter((line) => line.reqId === 'mine');
  t.same(
    lines.filter(({ traceId }) => traceId !== undefined).map(({ level, traceId }) => [level, traceId]),
    [
      [20, traceId],
      [40, traceId],
    ],
  );

  const untraced = await admin.get('/v1/keys/nothing', { traceparent: 'x' });
  t.equal(untraced.headers['traceparent'], undefined, 'without a trace the reply has no traceparent');
  t.equal(
    untraced.body.traceId,
    String(untraced.body.requestId).replaceAll('-', ''),
    'the log line still has a trace id',
  );
  await admin.post('/v1/keys', {});
  await eventually(async () => receiver.received.length === 2);
  t.equal(receiver.received[1]?.headers['traceparent'], undefined);
});

/** An OTLP receiver on a real socket. */
async function startCollector(t: Test) {
  const spans: Json[] = [];
  const resources: Json[] = [];
  let isAway = false;
  const server = createServer(async (incoming, response) => {
    const chunks: Buffer[] = [];
    for await (const chunk of incoming) chunks.push(chunk);
    if (isAway || incoming.url !== '/v1/traces') return void response.writeHead(400).end();
    const { resourceSpans } = JSON.parse(Buffer.concat(chunks).toString('utf8'));
    for (const { resource, scopeSpans } of resourceSpans) {
      resources.push(toFacts(resource.attributes));
      for (const scope of scopeSpans) {
        for (const span of scope.spans) spans.push({ ...span, facts: toFacts(span.attributes) });
      }
    }
    response.writeHead(200, { 'content-type': 'application/json' }).end('{}');
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  t.teardown(() => {
    server.closeAllConnections();
    server.close();
  });
  const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
  return { url, spans, resources, goAway: () => (isAway = true) };
}

function toFacts(attributes: Json[]): Record<string, unknown> {
  return Object.fromEntries(attributes.map(({ key, value }) => [key, value.stringValue ?? Number(value.intValue)]));
}

t.test('spans of requests and webhook calls are sent by OTLP, the last ones at shutdown', async (t) => {
  const collector = await startCollector(t);
  const receiver = await startReceiver(t);
  const {
    process: service,
    url,
    tokens,
  } = await serve(t, {
    OTEL_EXPORTER_OTLP_ENDPOINT: `${collector.url}/`,
    OTEL_SERVICE_NAME: 'latchkey-test',
    OTEL_RESOURCE_ATTRIBUTES: 'deployment.environment=staging,service.name=not-this',
    WEBHOOK_ALLOW_HTTP: 'true',
    WEBHOOK_ALLOW_CIDRS: '127.0.0.1',
  });
  const token = tokens['adminToken'] ?? '';
  const webhook = { url: receiver.url, events: ['key.created'] };
  await request(`${url}/v1/webhooks`, { method: 'POST', token, body: webhook });
  const headers = { authorization: `Bearer ${token}`, traceparent, 'content-type': 'application/json' };
  t.equal((await fetch(`${url}/v1/keys`, { method: 'POST', headers, body: '{}' })).status, 201);
  await eventually(async () => receiver.received.length === 1);
  const ofTrace = () => collector.spans.filter((span) => span.traceId === traceId);
  await eventually(async () => ofTrace().length === 2);
  const [server] = ofTrace().filter(({ kind }) => kind === 2);
  const [client] = ofTrace().filter(({ kind }) => kind === 3);
  t.match(server, {
    name: 'POST /v1/keys',
    parentSpanId: parentId,
    facts: { 'http.route': '/v1/keys', 'http.request.method': 'POST', 'http.response.status_code': 201 },
  });
  t.match(client, { parentSpanId: server.spanId, facts: { 'http.response.status_code': 204 } });
  t.match(receiver.received[0]?.headers['traceparent'], `00-${traceId}-${client.spanId}-01`);
  t.match(collector.resources[0], {
    'service.name': 'latchkey-test',
    'service.version': /\d/,
    'deployment.environment': 'staging',
  });
  const probe = await fetch(`${url}/livez`, { headers: { traceparent } });
  t.equal(probe.headers.get('traceparent'), null, 'probes are not traced');
  t.notMatch(JSON.stringify(collector.spans), token);

  // A careless caller may put a token into the path or request id.
  const misplaced = { ...headers, traceparent: traceparent.replaceAll('4', '6'), 'x-request-id': token };
  t.equal((await fetch(`${url}/v1/keys/${token.replaceAll('_', '%5F')}`, { headers: misplaced })).status, 400);

  const unsampled = `00-${traceId.replaceAll('4', '5')}-${parentId}-00`;
  await fetch(`${url}/v1/keys`, { headers: { ...headers, traceparent: unsampled } });
  const own = await fetch(`${url}/v1/partners`, { headers: { authorization: headers.authorization } });
  const started = parseTraceparent(own.headers.get('traceparent'));
  t.equal(started?.isSampled, true, 'without a traceparent a new trace begins');
  service.child.kill('SIGTERM');
  t.same(await service.exited, { code: 0, signal: null });
  t.equal(collector.spans.filter((span) => span.traceId === started?.traceId).length, 1);
  const [careless] = collector.spans.filter(({ traceId }) => misplaced.traceparent.includes(traceId));
  t.match(careless.facts, { 'url.path': /^\/v1\/keys\/lk_a_…$/, 'latchkey.request_id': '[redacted]' });
  t.notMatch(JSON.stringify(collector.spans), token);
  t.equal(
    collector.spans.filter((span) => unsampled.includes(span.traceId)).length,
    0,
    'an unsampled trace is not recorded',
  );
});

t.test('an unavailable collector loses its spans, and nothing else is affected', async (t) => {
  const collector = await startCollector(t);
  collector.goAway();
  const { process: service, url } = await serve(t, { OTEL_EXPORTER_OTLP_ENDPOINT: collector.url });
  t.equal((await request(`${url}/openapi.json`)).status, 200);
  await service.until(/Spans could not be sent/);
  t.equal((await request(`${url}/openapi.json`)).status, 200);
  service.child.kill('SIGTERM');
  t.same(await service.exited, { code: 0, signal: null });
});

t.test("without a collector, OpenTelemetry's SDK is not loaded", async (t) => {
  const loaded = async (code: string) => {
    const script = `
      import { createRequire } from 'node:module';
      await import('${compiled('src/cli/serve.ts')}');
      ${code}
      const names = Object.keys(createRequire(import.meta.url).cache).filter((name) => /otlp|sdk-trace/.test(name));
      console.log('loaded ' + names.length);`;
    const child = run(t, process.execPath, ['--input-type=module', '-e', script]);
    const [, count] = await child.until(/loaded (\d+)/);
    return Number(count);
  };
  t.equal(await loaded(''), 0);
  const start = `
    const { startTelemetry } = await import('${compiled('src/service/telemetry.ts')}');
    await startTelemetry({ endpoint: 'http://127.0.0.1:1', serviceName: 'x', version: '1', tokenPrefix: 'lk', logger: console });`;
  t.not(await loaded(start), 0, 'a loaded SDK is found');
});
