import { isDeepStrictEqual } from 'node:util';
import type { Changes } from '../domain/events.ts';

/** The fields of an update that differ from the present values. Empty: nothing to write or to record. */
export function changesBetween<Fields extends Record<string, unknown>>(
  present: Fields,
  given: { [Field in keyof Fields]?: Fields[Field] | undefined },
): Changes {
  const changes: Changes = {};
  for (const [field, to] of Object.entries(given)) {
    const from = present[field];
    if (to !== undefined && !isDeepStrictEqual(from, to)) changes[field] = { from, to };
  }
  return changes;
}
