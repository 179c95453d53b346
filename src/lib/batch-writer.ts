import { chunksOf } from './batches.ts';
import { limitedWarnings } from './limited-warnings.ts';
import { startPeriodicTask } from './periodic-task.ts';
import { singleFlight } from './single-flight.ts';

/** Collects entries in memory and writes them in batches: every second, and the rest when it is closed. */
export interface BatchWriter<Key, Entry> {
  /**
   * Enqueues an entry, or merges it into the waiting one with the same key.
   * @returns false if there is no room; the entry is dropped
   */
  add(key: Key, entry: Entry): boolean;
  /** Writes everything that was added before the call. Writes never overlap. Does not throw. */
  flush(): Promise<void>;
  /** Stops the timer and writes the rest. */
  close(): Promise<void>;
}

interface BatchWriterOptions<Entry> {
  /** The name of the entries in the log. */
  name: string;
  /** Writes a whole batch, or throws and has written nothing. */
  write: (batch: Entry[]) => Promise<void>;
  batchSize: number;
  /** The maximum number of waiting entries. Further new ones are dropped and counted. */
  capacity: number;
  /** A batch has entries of one group only. */
  groupOf?: (entry: Entry) => unknown;
  /** Merges an entry into the waiting one with its key. Default: the waiting one stays as it is. */
  merge?: (waiting: Entry, more: Entry) => void;
  /** Whether an error is caused by an entry, which would be rejected again. After other errors the batch is retried. */
  isRejection: (error: unknown) => boolean;
  /** Called for an entry that was rejected and is dropped. */
  onRejected?: (entry: Entry) => void;
  /** Describes a rejected entry in the log, without secrets. */
  describe: (entry: Entry) => Record<string, unknown>;
  logger: { warn(facts: Record<string, unknown>, message: string): void };
  /** Milliseconds between two writes. */
  intervalMs?: number;
}

/** The maximum number of rejected entries that the log names per write. The others are counted. */
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
          // The failed batch goes last, so that the others are tried first.
          for (const [key, entry] of [...batches, batch].flat()) add(key, entry);
          warnOfFailure({ err: error, rows: waiting.size, dropped }, `${name}: not written. Latchkey will retry.`);
          return;
        }
        // The batch is halved until the rejected entry is alone.
        const middle = Math.ceil(batch.length / 2);
        const [entry, ...others] = entries;
        if (others.length > 0) batches.unshift(batch.slice(0, middle), batch.slice(middle));
        else if (entry !== undefined) {
          rejected += 1;
          reject(entry, error, rejected <= rejectionsNamed);
        }
      }
    }
    if (dropped + rejected > 0) logger.warn({ dropped, rejected }, `${name}: some could not be written.`);
    dropped = 0;
  }

  function reject(entry: Entry, error: unknown, isNamed: boolean): void {
    if (isNamed) logger.warn({ err: error, entry: options.describe(entry) }, `${name}: one was rejected and dropped.`);
    options.onRejected?.(entry);
  }

  const flight = singleFlight(writeAll);
  const task = startPeriodicTask({
    everyMs: intervalMs,
    run: () => (waiting.size > 0 ? flight() : undefined),
  });
  return {
    add,
    // The write in progress may have started before the last entry was added.
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
