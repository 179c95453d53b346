import { chunksOf } from './batches.ts';
import { limitedWarnings } from './limited-warnings.ts';
import { startPeriodicTask } from './periodic-task.ts';
import { singleFlight } from './single-flight.ts';

/** Gathers entries in memory and writes them in batches: every second, and what is left at the end. */
export interface BatchWriter<Key, Entry> {
  /**
   * Enqueues an entry, or merges it into the one that waits under the same key.
   * @returns false where there is no room; the entry is dropped then
   */
  add(key: Key, entry: Entry): boolean;
  /** Writes all that was added before the call. Two writes never overlap. It does not throw. */
  flush(): Promise<void>;
  /** Stops the timer and writes the rest. */
  close(): Promise<void>;
}

interface BatchWriterOptions<Entry> {
  /** What the entries are, as the log names them. */
  name: string;
  /** Writes a batch as a whole, or throws and has written nothing of it. */
  write: (batch: Entry[]) => Promise<void>;
  batchSize: number;
  /** Entries that wait at most. Beyond it new ones are dropped and counted. */
  capacity: number;
  /** A batch has entries of one group only. */
  groupOf?: (entry: Entry) => unknown;
  /** Adds an entry to the one that waits under its key. Without it the one that waits stays as it is. */
  merge?: (waiting: Entry, more: Entry) => void;
  /** Whether an error is the fault of an entry, which would be rejected again. After any other the batch is retried. */
  isRejection: (error: unknown) => boolean;
  /** Called for an entry that was rejected and is left out. */
  onRejected?: (entry: Entry) => void;
  /** What the log says of a rejected entry; no secrets. */
  describe: (entry: Entry) => Record<string, unknown>;
  logger: { warn(facts: Record<string, unknown>, message: string): void };
  /** Milliseconds between two writes. */
  intervalMs?: number;
}

/** Rejected entries that the log names in one write. The others are counted. */
const rejectionsNamed = 10;

export function createBatchWriter<Key, Entry>(options: BatchWriterOptions<Entry>): BatchWriter<Key, Entry> {
  const { name, capacity, merge, logger, intervalMs = 1_000 } = options;
  let waiting = new Map<Key, Entry>();
  let dropped = 0;
  const warnOfFailure = limitedWarnings(logger);

  function add(key: Key, entry: Entry): boolean {
    const known = waiting.get(key);
    if (known === undefined && waiting.size >= capacity) {
      dropped += 1;
      return false;
    }
    if (known === undefined) waiting.set(key, entry);
    else merge?.(known, entry);
    return true;
  }

  async function writeAll(): Promise<void> {
    const batches = batchesOf(waiting, options);
    waiting = new Map();
    let rejected = 0;
    for (let batch = batches.shift(); batch !== undefined; batch = batches.shift()) {
      const entries = batch.map(([, entry]) => entry);
      try {
        await options.write(entries);
      } catch (error) {
        if (!options.isRejection(error)) {
          // The batch that failed goes last, so that the others have their turn before it.
          for (const [key, entry] of [...batches, batch].flat()) add(key, entry);
          warnOfFailure({ err: error, rows: waiting.size, dropped }, `${name}: not written, kept for the next time.`);
          return;
        }
        // Halved until what is rejected stands alone.
        const middle = Math.ceil(batch.length / 2);
        const [entry, ...others] = entries;
        if (others.length > 0) batches.unshift(batch.slice(0, middle), batch.slice(middle));
        else if (entry !== undefined) {
          rejected += 1;
          reject(entry, error, rejected <= rejectionsNamed);
        }
      }
    }
    if (dropped + rejected > 0) logger.warn({ dropped, rejected }, `${name}: not all could be written.`);
    dropped = 0;
  }

  function reject(entry: Entry, error: unknown, isNamed: boolean): void {
    if (isNamed) logger.warn({ err: error, entry: options.describe(entry) }, `${name}: one was rejected and left out.`);
    options.onRejected?.(entry);
  }

  const flight = singleFlight(writeAll);
  const task = startPeriodicTask({
    everyMs: intervalMs,
    run: () => (waiting.size > 0 ? flight() : undefined),
  });
  return {
    add,
    // The write in progress may have begun before the last entry was added.
    flush: () => flight.next(),
    async close() {
      await task.close();
      await flight.next();
    },
  };
}

function batchesOf<Key, Entry>(
  waiting: ReadonlyMap<Key, Entry>,
  { groupOf = () => undefined, batchSize }: Pick<BatchWriterOptions<Entry>, 'groupOf' | 'batchSize'>,
): Array<Array<[Key, Entry]>> {
  const groups = new Map<unknown, Array<[Key, Entry]>>();
  for (const pair of waiting) {
    const group = groupOf(pair[1]);
    const members = groups.get(group);
    if (members === undefined) groups.set(group, [pair]);
    else members.push(pair);
  }
  return [...groups.values()].flatMap((members) => chunksOf(members, batchSize));
}
