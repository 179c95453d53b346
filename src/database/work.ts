import { setTimeout as delay } from 'node:timers/promises';
import type { Keyring } from '../crypto/keyring.ts';
import type { Actor, RequestFacts } from '../domain/actor.ts';
import type { ChainedEvent } from '../domain/events.ts';
import type { OrganizationId } from '../domain/ids.ts';
import type { TraceContext } from '../domain/trace.ts';
import { backoffMs } from '../lib/backoff.ts';
import { type Db, type Tx, writeTransaction } from './client.ts';
import type { DatabaseClock } from './clock.ts';
import { beginAs } from './credential.ts';
import { isTransient } from './pg-error.ts';

/** The actor, organization and request of a command. `organizationId` is null for the installation itself. */
export interface ActorContext {
  actor: Actor;
  organizationId: OrganizationId | null;
  request: RequestFacts | null;
  /** The trace that the command belongs to, if there is one. */
  trace?: TraceContext | undefined;
}

/** A command in an organization. Only the installation's own commands have none. */
export interface OrganizationContext extends ActorContext {
  organizationId: OrganizationId;
}

/** One transaction: one time, one actor. Nothing below asks for the date or opens another transaction. */
export interface Work<By extends ActorContext = ActorContext> {
  tx: Tx;
  /** The database's time at the start of the transaction, in whole milliseconds. */
  now: Date;
  by: By;
  /** Authenticates the written rows. */
  keyring: Keyring;
  onAppended: OnAppended;
  /** Functions that run last, in order, inside the transaction: they lock the most contended rows. */
  beforeCommit: Array<() => Promise<void>>;
  /** Ids of changed rows, added by `record`. Cached copies are invalidated before the reply is sent. */
  changed: Set<string>;
  /** The actions of the recorded events. */
  recorded: string[];
}

/** Called with the events of a transaction before it commits. An error rolls the transaction back. */
export type OnAppended = (work: Pick<Work, 'tx' | 'by' | 'keyring'>, events: readonly ChainedEvent[]) => Promise<void>;

export interface Transactor {
  db: Db;
  keyring: Keyring;
  clock: DatabaseClock;
  onAppended: OnAppended;
  /** Called with the ids of the changed rows as soon as the transaction has ended. */
  onChanged?: (ids: Iterable<string>) => void;
  /** Called with the recorded actions after the commit. */
  onRecorded?: (actions: readonly string[]) => void;
}

const attempts = 5;
const retryAfter = { minMs: 40, maxMs: 320 };

/**
 * Runs `act` in a transaction and commits. Deadlocks and serialization failures run it again, so `act` must have no
 * effect outside of the transaction.
 * @throws Problem `unauthorized`, `token_expired` if the caller's access token was deleted or changed meanwhile
 */
export async function transact<By extends ActorContext, Result>(
  transactor: Transactor,
  by: By,
  act: (work: Work<By>) => Promise<Result>,
): Promise<Result> {
  for (let attempt = 1; ; attempt++) {
    const changed = new Set<string>();
    const recorded: string[] = [];
    try {
      const done = await writeTransaction(transactor.db).execute(async (tx) => {
        const now = await beginAs(tx, by, transactor.clock);
        const { keyring, onAppended } = transactor;
        const work: Work<By> = { tx, now, by, keyring, onAppended, beforeCommit: [], changed, recorded };
        const result = await act(work);
        for (const step of work.beforeCommit) await step();
        return result;
      });
      transactor.onRecorded?.(recorded);
      return done;
    } catch (error) {
      if (attempt === attempts || !isTransient(error)) throw error;
      await delay(backoffMs(attempt, retryAfter));
    } finally {
      // Also after a failure: the commit may have succeeded although its reply was lost.
      transactor.onChanged?.(changed);
    }
  }
}

/** Runs `act` as `transact` does, and rolls its transaction back: nothing is stored, recorded or notified. */
export async function rehearse<By extends ActorContext, Result>(
  transactor: Transactor,
  by: By,
  act: (work: Work<By>) => Promise<Result>,
): Promise<Result> {
  const rollback = new Error('the transaction was a rehearsal');
  const results: Result[] = [];
  const run = transact(transactor, by, async (work) => {
    results.push(await act(work));
    throw rollback;
  });
  await run.catch((error: unknown) => {
    if (error !== rollback) throw error;
  });
  return results.at(-1) as Result;
}
