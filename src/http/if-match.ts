import type { FastifyRequest } from 'fastify';
import type { ExpectedTags } from '../domain/entity-tag.ts';
import { validationProblem } from '../domain/errors.ts';

declare module 'fastify' {
  interface FastifyContextConfig {
    /** Replies carry the resource's `ETag`, and PATCH supports `If-Match`. */
    entityTag?: true;
  }
}

/** RFC 9110 section 8.8.3. Node reads headers as Latin-1, so obs-text is U+0080 to U+00FF. */
const entityTag = String.raw`(?:W/)?"[\x21\x23-\x7e\x80-\xff]*"`;

/** A list as in RFC 9110 section 5.6.1; empty elements are ignored. */
const listOfTags = new RegExp(String.raw`^(?:[ \t]*(?:${entityTag}[ \t]*)?(?:,|$))+$`);

/**
 * The entity tags in `If-Match` (RFC 9110 section 13.1.1). The comparison is strong, so weak tags are left out. `*` requires
 * an existing record, which every change requires anyway.
 * @throws Problem `validation_failed`
 */
export function expectedTags(request: FastifyRequest): ExpectedTags {
  const header = request.headers['if-match'];
  if (header === undefined || header === '*') return undefined;
  const tags = listOfTags.test(header) ? (header.match(new RegExp(entityTag, 'g')) ?? []) : [];
  if (tags.length > 0) return tags.filter((tag) => !tag.startsWith('W/'));
  throw validationProblem('headers.if-match', 'must be * or a list of entity tags such as "xyzzy"');
}
