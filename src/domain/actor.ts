/** The actor of an event, as of that time: a later change of name does not change it. */
export interface ActorSnapshot {
  type: 'admin' | 'operator' | 'verifier' | 'api_key' | 'claim' | 'system';
  /**
   * The id of the access token or API key; `issuer#subject` for a person of an identity provider; the claim's id for the
   * unknown holder of its code; `bootstrap`, `rekey`, `import` or a job's name for `system`.
   */
  id: string;
  /** An API key without a name has its id here. */
  name: string;
  email: string | null;
  /** The issuer and subject of a person of an identity provider, who may use many tokens. */
  issuer?: string;
  subject?: string;
}

/** An actor as history records it, with the creators of its access token. */
export interface Actor extends ActorSnapshot {
  /** The first creator in the chain of creators. Absent if the bootstrap created the access token. */
  createdByRoot?: ActorSnapshot;
  /** The ids of that chain, from the first to the direct creator. Absent if `createdByRoot` is absent. */
  createdByIds?: string[];
}

/** The actor of what the service does by itself. @param id see `ActorSnapshot` */
export function systemActor(id: string): Actor {
  return { type: 'system', id, name: id, email: null };
}

/** The creators of an access token, from the first to the direct one. The first is usually the bootstrap. */
export type CreatorChain = readonly ActorSnapshot[];

/** The maximum length of a chain. Otherwise tokens that replace each other for years would make it grow without end. */
const longestChain = 32;

/**
 * The chain of a token created by `creator`, whose own chain is `chain`. If it becomes too long, the newest entry
 * before the creator is dropped, so that the first creator and the topmost admin stay.
 */
export function extendChain(chain: CreatorChain, creator: Actor): CreatorChain {
  const kept = [...chain];
  if (kept.length >= longestChain) kept.splice(kept.length - 1 === topmostAdminAt(kept) ? -2 : -1, 1);
  return [...kept, snapshotOf(creator)];
}

/** The part of an actor that only history adds. Absent for a job and the bootstrap. */
export function creatorsOf(chain: CreatorChain): Pick<Actor, 'createdByRoot' | 'createdByIds'> {
  const people = chain.filter(({ type }) => type !== 'system');
  const [createdByRoot] = people;
  return createdByRoot === undefined ? {} : { createdByRoot, createdByIds: people.map(({ id }) => id) };
}

/** The topmost admin of the chain; undefined if there is none. */
export function topmostAdminOf(chain: CreatorChain): ActorSnapshot | undefined {
  return chain[topmostAdminAt(chain)];
}

function topmostAdminAt(chain: CreatorChain): number {
  return chain.findIndex(({ type }) => type === 'admin');
}

function snapshotOf({ createdByRoot, createdByIds, ...snapshot }: Actor): ActorSnapshot {
  return snapshot;
}

/** The request of an event; null if no request was involved. */
export interface RequestFacts {
  id: string;
  ip: string;
  userAgent: string | null;
}
