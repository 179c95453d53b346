import type { Verdict, VerdictOrProblem, VerifyBatchEntry } from './api.ts';

/** The URL of Latchkey and the token of this backend. */
export interface Service {
  /** Without a trailing slash; it may have a path. */
  url: string;
  token: string;
  /** How long one call may take, in milliseconds. */
  timeoutMs: number;
}

/** One entry of `POST /v1/verify/batch`. */
export type BatchEntry = VerifyBatchEntry & { ip?: string; scopes?: string[]; cost: number };

/** A verdict, or the problem of an entry that could not be verified, although others could. */
export type EntryAnswer = VerdictOrProblem;

export function isVerdict(answer: EntryAnswer): answer is Verdict {
  return 'valid' in answer;
}

/**
 * Why a call failed: nothing was sent (`unreachable`), Latchkey did not answer this request (`unavailable`), it rejects
 * the token (`refused`), or the connection broke and it is not known whether uses were counted (`broken`).
 */
export class CallFailed extends Error {
  override readonly name = 'CallFailed';
  readonly why: 'unreachable' | 'unavailable' | 'refused' | 'broken';

  constructor(why: CallFailed['why'], message: string, cause?: unknown) {
    super(message, { cause });
    this.why = why;
  }
}

const notLatchkey = 'The reply is not from this version of Latchkey. Check url.';

/** Verifies all entries in one request. @param fresh read the rows from the database @throws CallFailed */
export async function verifyBatch(service: Service, entries: BatchEntry[], fresh: boolean): Promise<EntryAnswer[]> {
  const response = await postBatch(service, JSON.stringify({ entries }), fresh);
  const { status } = response;
  const text = await response.text().catch((error: unknown) => {
    throw new CallFailed('broken', reasonOf(error, service), error);
  });
  if (status !== 200) {
    const why = status === 401 || status === 403 ? 'refused' : 'unavailable';
    throw new CallFailed(why, describeRefusal(status, text));
  }
  const answers = answersIn(text);
  if (answers?.length !== entries.length) throw new CallFailed('broken', notLatchkey);
  return answers;
}

/** Codes of errors that occur before anything is sent. */
const unsentCodes = new Set([
  'ECONNREFUSED',
  'EAI_AGAIN',
  'EHOSTUNREACH',
  'ENETUNREACH',
  'ENOTFOUND',
  'UND_ERR_CONNECT_TIMEOUT',
]);
/** Codes of an idle connection that Latchkey has closed. */
const lostCodes = new Set(['ECONNRESET', 'EPIPE', 'UND_ERR_SOCKET']);
/** A call that fails sooner used a connection that was already lost, so a new connection may work. */
const quickFailureMs = 1_000;

/**
 * Resolves with the head of the reply. A request is repeated only if none had arrived: otherwise it may have been
 * counted.
 */
async function postBatch(service: Service, body: string, fresh: boolean): Promise<Response> {
  const headers = { 'content-type': 'application/json', ...(fresh ? { 'cache-control': 'no-cache' } : {}) };
  const send = () =>
    call(service, '/v1/verify/batch', AbortSignal.timeout(service.timeoutMs), { method: 'POST', headers, body });
  const startedAtMs = performance.now();
  try {
    return await send().catch((error: unknown) => {
      if (!lostCodes.has(codeOf(error)) || performance.now() - startedAtMs > quickFailureMs) throw error;
      return send();
    });
  } catch (error) {
    const why = unsentCodes.has(codeOf(error)) ? 'unreachable' : 'broken';
    throw new CallFailed(why, reasonOf(error, service), error);
  }
}

/** Opens `GET /v1/changes`. @returns its text as it arrives @throws Error with the reply, if it is not a stream */
export async function openChanges(service: Service, signal: AbortSignal): Promise<AsyncIterable<string>> {
  const response = await call(service, '/v1/changes', signal, { headers: { accept: 'text/event-stream' } }).catch(
    (error: unknown) => {
      throw new Error(reasonOf(error, service), { cause: error });
    },
  );
  const { status, headers, body } = response;
  const text = body?.pipeThrough(new TextDecoderStream());
  if (status === 200 && text !== undefined && headers.get('content-type')?.startsWith('text/event-stream')) return text;
  // Only the start of another reply is read: it may not end.
  let beginning = '';
  for await (beginning of text ?? []) break;
  throw new Error(describeRefusal(status, beginning));
}

function call({ url, token }: Service, path: string, signal: AbortSignal, init: RequestInit): Promise<Response> {
  const headers = { authorization: `Bearer ${token}`, ...init.headers };
  return fetch(url + path, { ...init, headers, signal, redirect: 'manual' });
}

/** `fetch` wraps the actual error. */
export function causeOf(error: unknown): unknown {
  return error instanceof TypeError && error.cause !== undefined ? error.cause : error;
}

function codeOf(error: unknown): string {
  return (causeOf(error) as NodeJS.ErrnoException).code ?? '';
}

function reasonOf(error: unknown, { timeoutMs }: Service): string {
  const cause = causeOf(error);
  if ((cause as Error).name === 'TimeoutError') return `Latchkey did not answer within ${timeoutMs} ms`;
  // The error for several addresses has a code and no message.
  return `Latchkey did not answer: ${(cause as Error).message || codeOf(error)}`;
}

/** Describes a reply other than 200: status, title and detail of the problem, or that it is not from Latchkey. */
function describeRefusal(status: number, text: string): string {
  const { title, detail } = problemIn(text);
  if (title === undefined) return `The reply with status ${status} is not from Latchkey. Check url.`;
  const remedy = status === 401 || status === 403 ? " token must be a verifier's token with the scope read." : '';
  return `Latchkey answered ${status} ${title}: ${detail}${remedy}`;
}

function problemIn(text: string): { title?: string; detail?: string } {
  try {
    const { title, detail } = JSON.parse(text) as Record<string, unknown>;
    return typeof title === 'string' && typeof detail === 'string' ? { title, detail } : {};
  } catch {
    return {};
  }
}

function answersIn(text: string): EntryAnswer[] | undefined {
  try {
    const { data } = JSON.parse(text) as { data?: EntryAnswer[] };
    const isAnswer = (one: EntryAnswer) =>
      typeof one === 'object' && one !== null && ('valid' in one || 'status' in one);
    return Array.isArray(data) && data.every(isAnswer) ? data : undefined;
  } catch {
    return undefined;
  }
}
