import type { Verdict } from './verdict.ts';

/** One entry of `POST /v1/verify/batch`. */
export interface Entry {
  key: string;
  permission: 'read' | 'write';
  ip?: string;
  cost: number;
  /** That so many uses were let in already. */
  uses?: number;
}

/** One that tells of uses. */
export type UseEntry = Entry & { uses: number };

/** The entry could not be answered, while others could. */
export interface EntryProblem {
  status: number;
  detail: string;
}

export type EntryAnswer = Verdict | EntryProblem;

/**
 * Why there is no answer: nothing was sent (`unreachable`), Latchkey would not answer this now (`unavailable`), it does not take
 * this token (`refused`), or the connection broke and whether anything was counted is not known (`broken`).
 */
export class CallFailed extends Error {
  override readonly name = 'CallFailed';
  readonly why: 'unreachable' | 'unavailable' | 'refused' | 'broken';

  constructor(why: CallFailed['why'], message: string, cause?: unknown) {
    super(message, { cause });
    this.why = why;
  }
}

/** Failures from before a connection was there. */
const unreachableCodes = new Set([
  'ECONNREFUSED',
  'ENOTFOUND',
  'EAI_AGAIN',
  'EHOSTUNREACH',
  'ENETUNREACH',
  'UND_ERR_CONNECT_TIMEOUT',
]);

/** A kept connection that the other side has closed meanwhile. */
const lostCodes = new Set(['UND_ERR_SOCKET', 'ECONNRESET', 'EPIPE']);

/** A failure after less than this is a connection that was lost before, and another one may work. */
const quicklyMs = 300;

export interface ServiceCall {
  url: string;
  token: string;
  timeoutMs: number;
}

/**
 * Asks about all entries at once. @param fresh read the records from the database
 * @throws CallFailed
 */
export async function verifyBatch(call: ServiceCall, entries: Entry[], fresh: boolean): Promise<EntryAnswer[]> {
  const body = JSON.stringify({ entries });
  const startedAtMs = performance.now();
  try {
    return await send(call, body, entries.length, fresh);
  } catch (error) {
    const code = codeOf((error as Error).cause);
    if (!lostCodes.has(code ?? '') || performance.now() - startedAtMs > quicklyMs) throw error;
    return send(call, body, entries.length, fresh);
  }
}

async function send(
  { url, token, timeoutMs }: ServiceCall,
  body: string,
  count: number,
  fresh: boolean,
): Promise<EntryAnswer[]> {
  let response: Response;
  let text: string;
  try {
    response = await fetch(`${url}/v1/verify/batch`, {
      method: 'POST',
      headers: {
        authorization: `Bearer ${token}`,
        'content-type': 'application/json',
        ...(fresh ? { 'cache-control': 'no-cache' } : {}),
      },
      body,
      redirect: 'error',
      signal: AbortSignal.timeout(timeoutMs),
    });
    text = await response.text();
  } catch (error) {
    const cause = (error as Error).cause ?? error;
    const why = unreachableCodes.has(codeOf(cause) ?? '') ? 'unreachable' : 'broken';
    throw new CallFailed(why, `Latchkey did not answer: ${String(cause)}`, cause);
  }
  if (!response.ok) {
    const why = response.status === 401 || response.status === 403 ? 'refused' : 'unavailable';
    throw new CallFailed(why, `Latchkey answered ${response.status}: ${text.slice(0, 500)}`);
  }
  const answers = read(text);
  if (answers?.length === count) return answers;
  throw new CallFailed('broken', 'What answered is not Latchkey, or another version of it.');
}

function read(text: string): EntryAnswer[] | undefined {
  try {
    const { data } = JSON.parse(text) as { data?: EntryAnswer[] };
    const isAnswer = (one: EntryAnswer) =>
      typeof one === 'object' && one !== null && ('valid' in one || 'status' in one);
    return Array.isArray(data) && data.every(isAnswer) ? data : undefined;
  } catch {
    return undefined;
  }
}

function codeOf(cause: unknown): string | undefined {
  if (cause instanceof AggregateError) return codeOf(cause.errors[0]);
  return (cause as NodeJS.ErrnoException | undefined)?.code;
}
