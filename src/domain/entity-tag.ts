import { createHash } from 'node:crypto';
import { canonicalJson } from './canonical-json.ts';
import { Problem } from './errors.ts';

/**
 * The version of a row, for `ETag` (RFC 9110 section 8.8.3).
 * @param record the members that only a change alters, without those that grow by themselves, such as the last use
 */
export function entityTagOf(record: object): string {
  return `"${createHash('sha256').update(canonicalJson(record)).digest('base64url').slice(0, 22)}"`;
}

/** The versions in `If-Match`; undefined if any version will do. */
export type ExpectedTags = readonly string[] | undefined;

/** Called with the row locked. @throws Problem `precondition_failed` */
export function requireExpected(expected: ExpectedTags, present: string): void {
  if (expected === undefined || expected.includes(present)) return;
  throw new Problem('precondition_failed', 'If-Match does not name the current version.');
}
