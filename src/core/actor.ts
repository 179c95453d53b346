/** Who acts, as history keeps it: a snapshot, so that a later change of name does not rewrite the past. */
export interface Actor {
  type: 'admin' | 'operator' | 'verifier' | 'system';
  /** The id of the access token; `bootstrap` or a job's name for `system`. */
  id: string;
  name: string;
  email: string | null;
}

/** What history keeps of the request in which something happened; null where no request was involved. */
export interface RequestFacts {
  id: string;
  ip: string;
  userAgent: string | null;
}
