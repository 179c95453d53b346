import { createHash, randomBytes } from 'node:crypto';

/** A position in a distributed trace (W3C Trace Context, level 1). */
export interface TraceContext {
  /** 32 lower-case hex digits. */
  traceId: string;
  /** The id of the parent span: 16 lower-case hex digits. */
  spanId: string;
  /** Whether the caller recorded this trace. */
  isSampled: boolean;
}

const form = /^([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?$/;

/** Parses the header `traceparent`; undefined if it is not valid: then a new trace begins (section 3.2). */
export function parseTraceparent(header: unknown): TraceContext | undefined {
  if (typeof header !== 'string') return undefined;
  const [, version, traceId = '', spanId = '', flags = '', more] = form.exec(header) ?? [];
  if (version === undefined || version === 'ff' || (version === '00' && more !== undefined)) return undefined;
  if (/^0+$/.test(traceId) || /^0+$/.test(spanId)) return undefined;
  return { traceId, spanId, isSampled: (Number.parseInt(flags, 16) & 1) === 1 };
}

export function toTraceparent({ traceId, spanId, isSampled }: TraceContext): string {
  return `00-${traceId}-${spanId}-${isSampled ? '01' : '00'}`;
}

const uuid = /^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$/;

/** The trace of a request without `traceparent`, made from its request id. It has the id's digits if that is a UUID. */
export function traceIdOfRequestId(requestId: string): string {
  if (requestId.length === 36 && uuid.test(requestId)) return withoutHyphens(requestId);
  return createHash('sha256').update(requestId).digest('hex').slice(0, 32);
}

/** By positions, which is faster than searching for the hyphens; this runs for every request. */
function withoutHyphens(id: string): string {
  return id.slice(0, 8) + id.slice(9, 13) + id.slice(14, 18) + id.slice(19, 23) + id.slice(24);
}

/** A step of a trace. */
export interface Span {
  readonly context: TraceContext;
  /** @param facts attributes by OpenTelemetry's semantic conventions */
  end(facts: SpanFacts, outcome: { isError: boolean }): void;
}

export type SpanFacts = Record<string, string | number>;

interface SpanStart {
  name: string;
  kind: 'server' | 'client';
  facts: SpanFacts;
}

/** Starts spans. Undefined if there is no trace to continue and spans are not recorded. */
export interface Tracer {
  readonly isRecording: boolean;
  start(parent: TraceContext | undefined, span: SpanStart): Span | undefined;
}

/** Records no spans and passes the caller's trace on. */
export const passingTracer: Tracer = {
  isRecording: false,
  start(parent) {
    if (parent === undefined) return undefined;
    return { context: { ...parent, spanId: newSpanId() }, end: () => undefined };
  },
};

function newSpanId(): string {
  const bytes = randomBytes(8);
  // An id of zeros is not valid.
  bytes[7] = (bytes[7] ?? 0) | 1;
  return bytes.toString('hex');
}
