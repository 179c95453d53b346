/** Why the embedded Postgres could not be had; callers and tests can tell these apart. */
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

/** Its message says what happened and what to do about it; it is meant for the person who starts the service. */
export class EmbeddedPostgresError extends Error {
  override readonly name = 'EmbeddedPostgresError';
  readonly failure: EmbeddedFailure;

  constructor(failure: EmbeddedFailure, message: string, options?: ErrorOptions) {
    super(message, options);
    this.failure = failure;
  }
}
