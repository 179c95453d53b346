/** Who acts or has acted, as it was then, so that a later change of name does not rewrite the past. */
export interface ActorSnapshot {
  type: 'admin' | 'operator' | 'verifier' | 'system';
  /**
   * The id of the access token; issuer and subject with `#` between them for a person from an identity provider;
   * `bootstrap` or a job's name for `system`.
   */
  id: string;
  name: string;
  email: string | null;
  /** Both for a person from an identity provider, who may come with many tokens: as those name issuer and subject. */
  issuer?: string;
  subject?: string;
}

/** An actor as history records it: with those who stand behind its access token. */
export interface Actor extends ActorSnapshot {
  /** Who stands at the root of the chain of people who created the access token. Absent where the bootstrap created it. */
  createdByRoot?: ActorSnapshot;
  /** The ids of that chain, from the root to who created the token itself. Absent like the root. */
  createdByIds?: string[];
}

/** Who created an access token, from the root to its direct creator. The root is usually the bootstrap. */
export type CreatorChain = readonly ActorSnapshot[];

/** Entries kept of a chain. Tokens that replace each other for years would make it grow without end. */
const longestChain = 32;

/**
 * The chain of a token that `creator`, itself created by `chain`, creates. Of a chain that is too long the newest entry
 * before the creator goes, so that the root and the topmost admin stay.
 */
export function extendChain(chain: CreatorChain, creator: Actor): CreatorChain {
  const kept = [...chain];
  if (kept.length >= longestChain) kept.splice(kept.length - 1 === topmostAdminAt(kept) ? -2 : -1, 1);
  return [...kept, snapshotOf(creator)];
}

/** What history says of an actor beside itself. A job or the bootstrap is nobody who could be asked. */
export function creatorsOf(chain: CreatorChain): Pick<Actor, 'createdByRoot' | 'createdByIds'> {
  const people = chain.filter(({ type }) => type !== 'system');
  const [createdByRoot] = people;
  return createdByRoot === undefined ? {} : { createdByRoot, createdByIds: people.map(({ id }) => id) };
}

/** The admin under whom all tokens of the chain were created; undefined where there is none in it. */
export function topmostAdminOf(chain: CreatorChain): ActorSnapshot | undefined {
  return chain[topmostAdminAt(chain)];
}

function topmostAdminAt(chain: CreatorChain): number {
  return chain.findIndex(({ type }) => type === 'admin');
}

function snapshotOf({ createdByRoot, createdByIds, ...snapshot }: Actor): ActorSnapshot {
  return snapshot;
}

/** What history keeps of the request in which something happened; null where no request was involved. */
export interface RequestFacts {
  id: string;
  ip: string;
  userAgent: string | null;
}
