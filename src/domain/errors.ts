/**
 * The closed list of problems, and the one error type that carries them. This table alone maps codes to statuses;
 * `/problems/{code}` serves its texts.
 */

interface ProblemKind {
  status: number;
  title: string;
  /** What the problem means. */
  explanation: string;
  /** What to do next. */
  remedy: string;
}

export const problemKinds = {
  bad_request: {
    status: 400,
    title: 'Bad request',
    explanation: 'The request could not be understood as HTTP or as JSON, or it contradicts itself.',
    remedy: 'Read the detail, correct the request and send it again. Sending it unchanged will fail again.',
  },
  validation_failed: {
    status: 400,
    title: 'Validation failed',
    explanation: 'The request was understood, but a field or parameter is missing, unknown or out of range.',
    remedy:
      'Each entry of errors has a path and what is wrong there; at most 50 are listed, and by an import at most two for each entry. Unknown fields are rejected, never ignored.',
  },
  cost_exceeds_limit: {
    status: 400,
    title: 'Cost exceeds the limit',
    explanation: 'This use costs more than a whole window of one of its limits allows.',
    remedy: 'Waiting does not help. Send a smaller cost, or raise the limit that the detail names.',
  },
  secret_in_text: {
    status: 400,
    title: 'Secret in text',
    explanation: 'A text that would be stored contains a whole Latchkey token, plain or percent-encoded.',
    remedy:
      'Send the text without the token. If the token is in use, replace it: it may be in logs between you and Latchkey.',
  },
  too_many_matches: {
    status: 400,
    title: 'Too many matches',
    explanation:
      'The filter of a bulk request matches more than 1,000 keys. `matched` is their number. No key was changed.',
    remedy: 'Narrow the filter, for example by createdBefore or partnerId, and send several requests.',
  },
  cursor_invalid: {
    status: 400,
    title: 'Cursor invalid',
    explanation: 'This list did not return this cursor.',
    remedy: 'Pass nextCursor from the previous page unchanged, or leave cursor out to start at the newest entry.',
  },
  unauthorized: {
    status: 401,
    title: 'Unauthorized',
    explanation: 'No credential was sent, or the one sent is unknown, wrong or revoked.',
    remedy: 'Send a valid access token as Authorization: Bearer <token>, or in X-API-Key.',
  },
  token_malformed: {
    status: 401,
    title: 'Token malformed',
    explanation: 'The credential does not have the form of a Latchkey token, or its checksum does not match.',
    remedy: 'Check that the whole token was copied: prefix, kind, id, secret and checksum, and nothing else.',
  },
  token_expired: {
    status: 401,
    title: 'Token expired',
    explanation: 'The credential was valid, but its expiry has passed.',
    remedy: 'Use a newer credential, or ask an admin of your organization for one.',
  },
  forbidden: {
    status: 403,
    title: 'Forbidden',
    explanation: 'The credential is valid, but its role is not allowed to do this.',
    remedy: 'Use a credential with the role that the detail names.',
  },
  scope_missing: {
    status: 403,
    title: 'Scope missing',
    explanation: 'The credential has the right role but not the scope that this request needs.',
    remedy:
      'Use a credential with the scope that the detail names. None includes another: write covers neither read nor reveal.',
  },
  self_service_disabled: {
    status: 403,
    title: 'Self-service disabled',
    explanation: 'The organization does not allow the holders of its keys to rotate or revoke them.',
    remedy: 'Ask an admin of the organization to rotate or delete the key, or to set selfService to true.',
  },
  reveal_disabled: {
    status: 403,
    title: 'Reveal disabled',
    explanation: 'The organization has keyReveal set to never, or the plaintext of this key is not stored.',
    remedy: 'Create a second key in the row and switch to it. The reply contains its plaintext.',
  },
  not_found: {
    status: 404,
    title: 'Not found',
    explanation: 'The resource does not exist, or it belongs to another organization.',
    remedy: 'Check the path and the id.',
  },
  method_not_allowed: {
    status: 405,
    title: 'Method not allowed',
    explanation: 'The path exists, but not for this method.',
    remedy: 'Use one of the methods in the Allow header.',
  },
  request_timeout: {
    status: 408,
    title: 'Request timeout',
    explanation: 'The request did not arrive in full within 10 seconds.',
    remedy: 'Send it again over a faster connection.',
  },
  conflict: {
    status: 409,
    title: 'Conflict',
    explanation: 'The request does not fit the current state of the resource.',
    remedy: 'Read the resource again and decide by its current state.',
  },
  key_exists: {
    status: 409,
    title: 'Key exists',
    explanation:
      'A token that would be imported belongs to a key that is live or can still be restored. `keyId` names the key if it is one of your organization.',
    remedy: 'Leave the entry out: the token already works. If it belongs to another organization, replace it there.',
  },
  row_full: {
    status: 409,
    title: 'Row full',
    explanation: 'A key row holds at most two live keys, and this one has two.',
    remedy: 'Delete one of the keys that the detail names, then try again.',
  },
  partner_exists: {
    status: 409,
    title: 'Partner exists',
    explanation: 'The organization already has a live partner with this e-mail address. `partnerId` names it.',
    remedy: 'Use the existing partner, or delete it first.',
  },
  external_id_exists: {
    status: 409,
    title: 'External id exists',
    explanation: 'The organization already has a live partner with this externalId. `partnerId` names it.',
    remedy: 'Use the existing partner, or first change its externalId or remove it with null.',
  },
  not_restorable: {
    status: 409,
    title: 'Not restorable',
    explanation: 'The resource can no longer be restored, or cannot be restored here.',
    remedy: 'Within the retention time, create a recovery request. Otherwise create a new key.',
  },
  already_deleted: {
    status: 409,
    title: 'Already deleted',
    explanation: 'The resource has been deleted and can no longer be changed.',
    remedy: 'To change it, restore it first within the undo window.',
  },
  idempotency_in_progress: {
    status: 409,
    title: 'Request in progress',
    explanation: 'A request with the same Idempotency-Key is still running.',
    remedy: 'Wait a moment and send the same request again.',
  },
  history_altered: {
    status: 409,
    title: 'History altered',
    explanation:
      'The history in the database is shorter than an earlier checkpoint, or differs from it. Latchkey does not sign a checkpoint that contradicts an earlier one.',
    remedy:
      'Keep all earlier checkpoints and notify the operators of this service. `latchkey audit verify` reports the first bad event.',
  },
  claim_gone: {
    status: 410,
    title: 'Claim gone',
    explanation:
      'No key can be fetched with this code: it is unknown, was used before, has expired or was cancelled, or its key was deleted.',
    remedy:
      'Ask the sender of the code for a new one. If you did not use the code yourself, say so: somebody else may have.',
  },
  precondition_failed: {
    status: 412,
    title: 'Precondition failed',
    explanation: 'The resource has changed since the version that If-Match names.',
    remedy: 'Read it again and repeat the change on the newer version.',
  },
  payload_too_large: {
    status: 413,
    title: 'Payload too large',
    explanation: 'A request body may have at most 64 KiB, unless its endpoint documents another limit.',
    remedy: 'Send less.',
  },
  unsupported_media_type: {
    status: 415,
    title: 'Unsupported media type',
    explanation: 'The body is not in a format that this endpoint reads.',
    remedy: 'Send JSON with Content-Type: application/json, and without a Content-Encoding.',
  },
  expectation_failed: {
    status: 417,
    title: 'Expectation failed',
    explanation: 'The request has an Expect header that this service cannot meet.',
    remedy: 'Send no Expect header, or Expect: 100-continue.',
  },
  reply_gone: {
    status: 409,
    title: 'Reply gone',
    explanation:
      'A request with this Idempotency-Key was executed before, and its reply is no longer stored. Replies with a plaintext are stored for 15 minutes.',
    remedy:
      'The request was not executed again. `created` has the ids of what the first request created or changed. Reveal that key, or delete it and create another one with a new Idempotency-Key.',
  },
  idempotency_mismatch: {
    status: 422,
    title: 'Idempotency mismatch',
    explanation: 'This Idempotency-Key was used before with a different request body.',
    remedy: 'Use a new Idempotency-Key for a different request.',
  },
  rate_limited: {
    status: 429,
    title: 'Rate limited',
    explanation: 'Too many requests in the current window, or too many at once.',
    remedy: 'Wait for the seconds in Retry-After, then continue more slowly.',
  },
  headers_too_large: {
    status: 431,
    title: 'Request header fields too large',
    explanation: 'Request line and headers may have at most 16 KiB together.',
    remedy: 'Send fewer or shorter headers.',
  },
  internal: {
    status: 500,
    title: 'Internal error',
    explanation: 'An internal error occurred in Latchkey. Its log contains the cause, with the request id.',
    remedy: 'Try again. If the error stays, give the request id to the operators of this service.',
  },
  overloaded: {
    status: 503,
    title: 'Overloaded',
    explanation: 'Latchkey has more queued work than it can do in time.',
    remedy: 'Wait for the seconds in Retry-After and try again.',
  },
  unavailable: {
    status: 503,
    title: 'Unavailable',
    explanation: 'A service that Latchkey needs, such as its database, cannot be reached.',
    remedy:
      'Wait for the seconds in Retry-After and try again. A change may have been made although its reply was lost. With an Idempotency-Key send the request again; otherwise read the resource first.',
  },
} as const satisfies Record<string, ProblemKind>;

export type ProblemCode = keyof typeof problemKinds;

export const problemCodes = Object.keys(problemKinds) as ProblemCode[];

export function isProblemCode(text: string): text is ProblemCode {
  return Object.hasOwn(problemKinds, text);
}

/** One problem of the input. `path` is, for example, `body.rateLimit.requests`, `query.limit` or `headers.host`. */
export interface InputError {
  path: string;
  message: string;
}

interface ProblemOptions {
  errors?: InputError[];
  /** The maximum number of errors that the reply lists; default 50. */
  errorsListed?: number;
  /** Further members of the problem document (RFC 9457 section 3.2), such as the ids of the keys that fill a row. */
  members?: Record<string, unknown>;
  headers?: Record<string, string>;
  /** Logged under the request id, never sent. */
  cause?: unknown;
}

/** The maximum length of a caller's text, and the maximum number of entries, that a reply repeats. */
const longestDetail = 1_000;
const longestErrorText = 200;
const mostErrors = 50;

function shorten(text: string, most: number): string {
  return text.length <= most ? text : `${text.slice(0, most - 1).toWellFormed()}…`;
}

/** The only error for callers. All other errors are answered as `internal`. */
export class Problem extends Error {
  override readonly name = 'Problem';
  readonly code: ProblemCode;
  readonly errors: InputError[] | undefined;
  readonly members: Record<string, unknown>;
  readonly headers: Record<string, string>;

  /** @param detail public: what happened, with the caller's own values if they help. Never a secret. */
  constructor(code: ProblemCode, detail: string, options: ProblemOptions = {}) {
    super(shorten(detail, longestDetail), options.cause === undefined ? undefined : { cause: options.cause });
    this.code = code;
    this.errors = options.errors?.slice(0, options.errorsListed ?? mostErrors).map(({ path, message }) => ({
      path: shorten(path, longestErrorText),
      message: shorten(message, longestErrorText),
    }));
    this.members = options.members ?? {};
    this.headers = options.headers ?? {};
  }

  get status(): number {
    return problemKinds[this.code].status;
  }

  get detail(): string {
    return this.message;
  }
}

/** A problem of one part of the input. @param path such as `body.expiresAt` or `headers.if-match` */
export function validationProblem(path: string, message: string): Problem {
  return validationProblems([{ path, message }]);
}

/** All problems of the input. */
export function validationProblems(errors: InputError[]): Problem {
  const detail = errors.map(({ path, message }) => `${path}: ${message}`).join('; ');
  return new Problem('validation_failed', detail, { errors });
}

/**
 * @param noun names the resource, such as `key in this organization`
 * @throws Problem `not_found`
 */
export function requireFound<Found>(record: Found | undefined, noun: string): Found {
  if (record === undefined) throw new Problem('not_found', `There is no such ${noun}.`);
  return record;
}
