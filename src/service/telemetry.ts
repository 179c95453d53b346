import type { Span as OtelSpan } from '@opentelemetry/api';
import type { SpanExporter } from '@opentelemetry/sdk-trace';
import type { Logger } from 'pino';
import { createSecretText } from '../crypto/secret-text.ts';
import type { Span, SpanFacts, TraceContext, Tracer } from '../domain/trace.ts';
import { pause } from '../lib/backoff.ts';
import { createHealthSwitch } from '../lib/health-switch.ts';

export interface Telemetry {
  tracer: Tracer;
  /** Sends the spans that are left. */
  close(): Promise<void>;
}

interface TelemetryOptions {
  /** The URL of an OTLP receiver, such as `http://collector:4318`. */
  endpoint: string;
  serviceName: string;
  version: string;
  tokenPrefix: string;
  logger: Pick<Logger, 'warn'>;
}

const exportTimeoutMs = 5_000;
const sendEveryMs = 2_000;
/** How long the shutdown waits until the last spans are sent. */
const lastSendMs = 400;

/**
 * Records spans and sends them by OTLP over HTTP. OpenTelemetry is loaded only here, so that it costs nothing if it is
 * not configured. It reads its further settings by itself, such as OTEL_EXPORTER_OTLP_HEADERS.
 */
export async function startTelemetry(options: TelemetryOptions): Promise<Telemetry> {
  const { endpoint, serviceName, version, logger } = options;
  const { mask } = createSecretText(options.tokenPrefix);
  const [
    api,
    { BatchSpanProcessor, TracerProvider },
    { OTLPTraceExporter },
    { detectResources, envDetector, resourceFromAttributes },
  ] = await Promise.all([
    import('@opentelemetry/api'),
    import('@opentelemetry/sdk-trace'),
    import('@opentelemetry/exporter-trace-otlp-http'),
    import('@opentelemetry/resources'),
  ]);
  const exporter = new OTLPTraceExporter({
    url: `${endpoint.replace(/\/+$/, '')}/v1/traces`,
    timeoutMillis: exportTimeoutMs,
  });
  const provider = new TracerProvider({
    // OTEL_RESOURCE_ATTRIBUTES overrides these, except that OTEL_SERVICE_NAME wins over its `service.name`.
    resource: resourceFromAttributes({ 'service.name': serviceName, 'service.version': version }).merge(
      detectResources({ detectors: [envDetector] }),
    ),
    spanProcessors: [
      new BatchSpanProcessor({ exporter: logFailures(exporter, logger), scheduledDelayMillis: sendEveryMs }),
    ],
  });
  const tracer = provider.getTracer('latchkey', version);
  const kinds = { server: api.SpanKind.SERVER, client: api.SpanKind.CLIENT };

  function contextOf(parent: TraceContext | undefined) {
    if (parent === undefined) return api.ROOT_CONTEXT;
    const { traceId, spanId, isSampled } = parent;
    const traceFlags = isSampled ? api.TraceFlags.SAMPLED : api.TraceFlags.NONE;
    return api.trace.setSpanContext(api.ROOT_CONTEXT, { traceId, spanId, traceFlags, isRemote: true });
  }

  return {
    tracer: {
      isRecording: true,
      start(parent, { name, kind, facts }) {
        return toSpan(tracer.startSpan(name, { kind: kinds[kind], attributes: masked(facts) }, contextOf(parent)));
      },
    },
    async close() {
      const sent = provider.shutdown().catch(() => undefined);
      await Promise.race([sent, pause(lastSendMs)]);
    },
  };

  /** Paths and request ids come from the caller and may contain a token, so they are masked as in the log. */
  function masked(facts: SpanFacts): SpanFacts {
    return Object.fromEntries(
      Object.entries(facts).map(([name, fact]) => [name, typeof fact === 'string' ? mask(fact) : fact]),
    );
  }

  function toSpan(span: OtelSpan): Span {
    const { traceId, spanId, traceFlags } = span.spanContext();
    return {
      context: { traceId, spanId, isSampled: (traceFlags & api.TraceFlags.SAMPLED) !== 0 },
      end(facts, { isError }) {
        span.setAttributes(masked(facts));
        if (isError) span.setStatus({ code: api.SpanStatusCode.ERROR });
        span.end();
      },
    };
  }
}

/** If the receiver does not respond, its spans are dropped, with one line in the log for each outage. */
function logFailures(exporter: SpanExporter, logger: Pick<Logger, 'warn'>): SpanExporter {
  const health = createHealthSwitch((isHealthy, err) => {
    if (!isHealthy) logger.warn({ err }, 'Spans could not be sent; they are dropped.');
  }, true);
  return {
    export(spans, done) {
      exporter.export(spans, (result) => {
        health.set(result.code === 0, result.error);
        done(result);
      });
    },
    shutdown: () => exporter.shutdown(),
    ...(exporter.forceFlush === undefined ? {} : { forceFlush: () => exporter.forceFlush?.() ?? Promise.resolve() }),
  };
}
