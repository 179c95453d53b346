/** Who acts, as history keeps it: a snapshot, so that a later change of name does not rewrite the past. */
export interface Actor {
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

/** What history keeps of the request in which something happened; null where no request was involved. */
export interface RequestFacts {
  id: string;
  ip: string;
  userAgent: string | null;
}
