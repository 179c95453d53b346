/** Why the embedded Postgres is not available. */
export type EmbeddedFailure =
  | 'unsupported_platform'
  | 'programs_unusable'
  | 'no_account'
  | 'closed_folder'
  | 'foreign_owner'
  | 'passwords_lost'
  | 'in_use'
  | 'initdb_failed'
  | 'start_failed';

/** The message says what happened and what to do about it. */
export class EmbeddedPostgresError extends Error {
  override readonly name = 'EmbeddedPostgresError';
  readonly failure: EmbeddedFailure;

  constructor(failure: EmbeddedFailure, message: string, options?: ErrorOptions) {
    super(message, options);
    this.failure = failure;
  }
}
