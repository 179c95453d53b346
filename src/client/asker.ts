import { createConnections, type Service } from './connections.ts';
import { CallFailed, type Entry, type EntryAnswer, verifyBatch } from './service-call.ts';
import { LatchkeyUnavailable } from './verdict.ts';

/** What has been let in here and Latchkey has to be told. */
export interface Report {
  entry: Entry;
  /** Counted there; the answer tells how the key is now. @param sentAtMs monotonic milliseconds */
  answered(answer: EntryAnswer, sentAtMs: number): void;
  /** Not counted, or it is not known whether it was. */
  failed(error: CallFailed): void;
}

/** Puts questions and reports together into few requests. */
export interface Asker {
  /**
   * @param fresh read the record from the database
   * @throws CallFailed, LatchkeyUnavailable where too many wait
   */
  ask(entry: Entry, fresh: boolean): Promise<EntryAnswer>;
  /** Sends what there is to report, and resolves when it is answered. */
  report(): Promise<void>;
  /** Reports, and ends the connections. */
  close(): Promise<void>;
}

interface AskerOptions {
  service: Service;
  /** Hands out at most so many reports, which are then no longer waiting. */
  takeReports: (most: number) => Report[];
  /** Told after each request whether Latchkey has answered. */
  onCalled: (failure: CallFailed | undefined) => void;
}

interface Wish {
  entry: Entry;
  /** Monotonic milliseconds. */
  sinceMs: number;
  resolve: (answer: EntryAnswer) => void;
  reject: (error: Error) => void;
}

/** Requests at once, and questions in one: what comes meanwhile goes together with the next. */
const requestsAtOnce = 8;
const questionsInRequest = 250;
const reportsInRequest = 250;
const questionsWaiting = 10_000;

export function createAsker({ service, takeReports, onCalled }: AskerOptions): Asker {
  const connections = createConnections(service);
  const waiting: { fresh: Wish[]; known: Wish[] } = { fresh: [], known: [] };
  let running = 0;
  let wasFresh = false;
  let isStarting = false;
  let reporting: Promise<void> | undefined;

  function startSoon(): void {
    if (isStarting) return;
    isStarting = true;
    // What one turn of the event loop brings is one request.
    setImmediate(() => {
      isStarting = false;
      start();
    });
  }

  function start(): void {
    while (running < requestsAtOnce && waiting.known.length + waiting.fresh.length > 0) {
      // By turns: neither those who try keys that do not exist nor those who use up a limit keep the others waiting.
      wasFresh = waiting.known.length === 0 || (!wasFresh && waiting.fresh.length > 0);
      // Fresh ones by themselves: the records of all others would be read from the database as well.
      if (wasFresh) void send(waiting.fresh.splice(0, questionsInRequest), [], true);
      // Reports come first: what is asked then is judged with everything counted that was let in before.
      else void send(waiting.known.splice(0, questionsInRequest), takeReports(reportsInRequest), false);
    }
  }

  /** Whoever has waited as long as a call may take is not made to wait for one more. */
  function rejectOld(queue: Wish[]): void {
    const oldestMs = performance.now() - service.timeoutMs;
    const old = queue.findIndex(({ sinceMs }) => sinceMs > oldestMs);
    for (const wish of queue.splice(0, old < 0 ? queue.length : old)) {
      wish.reject(new LatchkeyUnavailable('Latchkey was busy with other questions for too long.'));
    }
  }

  /** @returns whether it was answered */
  async function send(wishes: Wish[], reports: Report[], fresh: boolean): Promise<boolean> {
    running += 1;
    const entries = [...reports, ...wishes].map(({ entry }) => entry);
    const sentAtMs = performance.now();
    try {
      const answers = await verifyBatch(connections, entries, fresh);
      onCalled(undefined);
      for (const [index, report] of reports.entries()) report.answered(answerAt(answers, index), sentAtMs);
      for (const [index, wish] of wishes.entries()) wish.resolve(answerAt(answers, reports.length + index));
      return true;
    } catch (error) {
      const failure = error instanceof CallFailed ? error : new CallFailed('broken', String(error), error);
      onCalled(failure);
      for (const report of reports) report.failed(failure);
      for (const wish of wishes) wish.reject(failure);
      return false;
    } finally {
      running -= 1;
      rejectOld(waiting.known);
      rejectOld(waiting.fresh);
      start();
    }
  }

  async function reportAll(): Promise<void> {
    for (;;) {
      const reports = takeReports(reportsInRequest);
      if (reports.length === 0 || !(await send([], reports, false))) return;
      // What has come meanwhile is the next round's: uses come all the time.
      if (reports.length < reportsInRequest) return;
    }
  }

  function report(): Promise<void> {
    reporting ??= reportAll().finally(() => {
      reporting = undefined;
    });
    return reporting;
  }

  return {
    ask(entry, fresh) {
      const queue = fresh ? waiting.fresh : waiting.known;
      if (queue.length >= questionsWaiting) {
        return Promise.reject(new LatchkeyUnavailable('Too many questions wait for an answer.'));
      }
      return new Promise((resolve, reject) => {
        queue.push({ entry, sinceMs: performance.now(), resolve, reject });
        startSoon();
      });
    },
    report,
    async close() {
      // One may be on its way, and what came after it waits.
      await report();
      await report();
      await connections.close();
    },
  };
}

function answerAt(answers: EntryAnswer[], index: number): EntryAnswer {
  const answer = answers[index];
  if (answer === undefined) throw new CallFailed('broken', 'an answer is missing');
  return answer;
}
