import { type BatchEntry, CallFailed, type EntryAnswer, type Service, verifyBatch } from './service.ts';
import { LatchkeyUnavailable } from './verdict.ts';

/** A report of locally allowed uses. */
export interface Report {
  entry: BatchEntry;
  /**
   * The uses are counted, or why they are not. The answer is the key's current state. @param sentAtMs monotonic
   * milliseconds
   */
  answered(answer: EntryAnswer, sentAtMs: number): void;
  /** The uses are not counted, or it is not known whether they are. */
  failed(error: CallFailed): void;
}

/** Combines questions and reports into few requests. */
export interface VerifyQueue {
  /**
   * @param fresh read the row from the database
   * @throws CallFailed, LatchkeyUnavailable if too many questions wait
   */
  ask(entry: BatchEntry, fresh: boolean): Promise<EntryAnswer>;
  /** Sends the waiting reports and resolves when they are answered. */
  flushReports(): Promise<void>;
}

interface VerifyQueueOptions {
  service: Service;
  /** Takes out at most this many reports. */
  takeReports: (most: number) => Report[];
  /** Called after each request, with its failure if there is one. */
  onCalled: (failure: CallFailed | undefined) => void;
}

interface Question {
  entry: BatchEntry;
  /** Monotonic milliseconds. */
  sinceMs: number;
  resolve: (answer: EntryAnswer) => void;
  reject: (error: Error) => void;
}

/** `fetch` opens a connection for each concurrent request, so their number is limited here. */
const requestsAtOnce = 8;
const questionsInRequest = 250;
const reportsInRequest = 250;
const questionsWaiting = 10_000;

export function createVerifyQueue({ service, takeReports, onCalled }: VerifyQueueOptions): VerifyQueue {
  const waiting: { fresh: Question[]; known: Question[] } = { fresh: [], known: [] };
  let running = 0;
  let wasFresh = false;
  let isScheduled = false;

  /** Questions of one turn of the event loop share a request. */
  function schedule(): void {
    if (isScheduled) return;
    isScheduled = true;
    setImmediate(() => {
      isScheduled = false;
      start();
    });
  }

  function start(): void {
    while (running < requestsAtOnce && waiting.known.length + waiting.fresh.length > 0) {
      // In turns, so that neither guessed keys nor exhausted limits delay other questions.
      wasFresh = waiting.known.length === 0 || (!wasFresh && waiting.fresh.length > 0);
      // Fresh questions are sent alone: otherwise the rows of all others would be read from the database as well.
      if (wasFresh) void send(waiting.fresh.splice(0, questionsInRequest), [], true);
      // Reports come first, so that all uses allowed before are counted when the questions are verified.
      else void send(waiting.known.splice(0, questionsInRequest), takeReports(reportsInRequest), false);
    }
  }

  /** A question that has waited as long as a call may take does not wait for another one. */
  function rejectOld(queue: Question[]): void {
    const oldestMs = performance.now() - service.timeoutMs;
    const old = queue.findIndex(({ sinceMs }) => sinceMs > oldestMs);
    for (const question of queue.splice(0, old < 0 ? queue.length : old)) {
      question.reject(new LatchkeyUnavailable('Latchkey was busy with other questions for too long.'));
    }
  }

  /** @returns whether it was answered */
  async function send(questions: Question[], reports: Report[], fresh: boolean): Promise<boolean> {
    running += 1;
    const entries = [...reports, ...questions].map(({ entry }) => entry);
    const sentAtMs = performance.now();
    try {
      const answers = await verifyBatch(service, entries, fresh);
      onCalled(undefined);
      for (const [index, answer] of answers.entries()) {
        reports[index]?.answered(answer, sentAtMs);
        questions[index - reports.length]?.resolve(answer);
      }
      return true;
    } catch (error) {
      const failure = error instanceof CallFailed ? error : new CallFailed('broken', String(error), error);
      onCalled(failure);
      for (const report of reports) report.failed(failure);
      for (const question of questions) question.reject(failure);
      return false;
    } finally {
      running -= 1;
      rejectOld(waiting.known);
      rejectOld(waiting.fresh);
      start();
    }
  }

  return {
    ask(entry, fresh) {
      const queue = fresh ? waiting.fresh : waiting.known;
      if (queue.length >= questionsWaiting) {
        return Promise.reject(new LatchkeyUnavailable('Too many questions wait for an answer.'));
      }
      return new Promise((resolve, reject) => {
        queue.push({ entry, sinceMs: performance.now(), resolve, reject });
        schedule();
      });
    },
    async flushReports() {
      for (;;) {
        const reports = takeReports(reportsInRequest);
        if (reports.length === 0 || !(await send([], reports, false))) return;
        // New uses arrive all the time; they belong to the next flush.
        if (reports.length < reportsInRequest) return;
      }
    },
  };
}
