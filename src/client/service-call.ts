import { type Answer, Broken, type Connections } from './connections.ts';
import { describeAnswer } from './trouble.ts';
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
  code?: string;
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

/** A kept connection that the other side has closed meanwhile. */
const lostCodes = new Set(['UND_ERR_SOCKET', 'ECONNRESET', 'EPIPE']);

/** A failure after less than this is a connection that was lost before, and another one may work. */
const quicklyMs = 300;

/**
 * Asks about all entries at once. @param fresh read the records from the database
 * @throws CallFailed
 */
export async function verifyBatch(connections: Connections, entries: Entry[], fresh: boolean): Promise<EntryAnswer[]> {
  const { status, text } = await ask(connections, JSON.stringify({ entries }), fresh);
  if (status !== 200) {
    const why = status === 401 || status === 403 ? 'refused' : 'unavailable';
    throw new CallFailed(why, describeAnswer(status, text));
  }
  const answers = read(text);
  if (answers?.length === entries.length) return answers;
  throw new CallFailed('broken', 'what answers there is not Latchkey, or another version of it. Is url right?');
}

async function ask(connections: Connections, body: string, fresh: boolean): Promise<Answer> {
  const headers = { 'content-type': 'application/json', ...(fresh ? { 'cache-control': 'no-cache' } : {}) };
  const asked = { path: '/v1/verify/batch', headers, body };
  const startedAtMs = performance.now();
  try {
    return await connections.post(asked).catch((error: unknown) => {
      if (!wasLostBefore(error) || performance.now() - startedAtMs > quicklyMs) throw error;
      return connections.post(asked);
    });
  } catch (error) {
    if (!(error instanceof Broken)) throw error;
    throw new CallFailed(error.wasSent ? 'broken' : 'unreachable', error.message, error.cause);
  }
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

/** What was answered in part was counted, and would be once more. */
function wasLostBefore(error: unknown): boolean {
  if (!(error instanceof Broken) || error.wasAnswered) return false;
  return lostCodes.has((error.cause as NodeJS.ErrnoException).code ?? '');
}
