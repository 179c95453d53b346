import { createHash } from 'node:crypto';
import { canonicalJson } from './canonical-json.ts';
import { Problem } from './errors.ts';

/**
 * The version of a stored record, as `ETag` shows it (RFC 9110 section 8.8.3).
 * @param record all of it that only a change alters: nothing that grows by itself, such as the time of the last use
 */
export function entityTagOf(record: object): string {
  return `"${createHash('sha256').update(canonicalJson(record)).digest('base64url').slice(0, 22)}"`;
}

/** The versions that a change is meant for, as `If-Match` names them; undefined: whichever there is. */
export type ExpectedTags = readonly string[] | undefined;

/** To be asked under the record's lock. @throws Problem `precondition_failed` */
export function requireExpected(expected: ExpectedTags, present: string): void {
  if (expected === undefined || expected.includes(present)) return;
  throw new Problem('precondition_failed', 'If-Match names other versions than the present one.');
}
