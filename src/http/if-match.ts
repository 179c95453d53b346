import type { FastifyRequest } from 'fastify';
import type { ExpectedTags } from '../domain/entity-tag.ts';
import { validationProblem } from '../domain/errors.ts';

declare module 'fastify' {
  interface FastifyContextConfig {
    /** The reply carries the resource's `ETag`, and a PATCH obeys `If-Match`. */
    entityTag?: true;
  }
}

/** RFC 9110 section 8.8.3. Node reads headers as Latin-1, so obs-text are the characters from U+0080 to U+00FF. */
const entityTag = String.raw`(?:W/)?"[\x21\x23-\x7e\x80-\xff]*"`;

/** A list by section 5.6.1, whose recipients ignore empty elements. Every element ends at a comma or at the end. */
const listOfTags = new RegExp(String.raw`^(?:[ \t]*(?:${entityTag}[ \t]*)?(?:,|$))+$`);

/**
 * What `If-Match` asks for (RFC 9110 section 13.1.1). Tags are compared strongly, so weak ones match nothing and are
 * left out. `*` asks for a record that exists, which every change does anyway.
 * @throws Problem `validation_failed`
 */
export function expectedTags(request: FastifyRequest): ExpectedTags {
  const header = request.headers['if-match'];
  if (header === undefined || header === '*') return undefined;
  const tags = listOfTags.test(header) ? (header.match(new RegExp(entityTag, 'g')) ?? []) : [];
  if (tags.length > 0) return tags.filter((tag) => !tag.startsWith('W/'));
  throw validationProblem('headers.if-match', 'must be * or a list of entity tags such as "xyzzy"');
}
