import { createHash } from 'node:crypto';
import { canonicalJson } from './canonical-json.ts';
import { Problem } from './errors.ts';

/** A page of a list, newest first. `nextCursor` is null on the last page. */
export interface Page<Item> {
  data: Item[];
  nextCursor: string | null;
}

/** Which page of a list. */
export interface PageRequest {
  limit: number;
  cursor?: string | undefined;
}

/** A list with its filters. A cursor is valid for exactly one. */
export type ListId = string & { readonly __list: never };

/** @param facts everything that decides what the list contains: its route and its filters */
export function listId(facts: Record<string, unknown>): ListId {
  return createHash('sha256').update(canonicalJson(facts)).digest('base64url').slice(0, 11) as ListId;
}

/**
 * Makes a page from up to `limit + 1` items. The last one only shows that there are more.
 * @param positionOf the item's position in the order of the list, after which the store continues
 */
export function toPage<Item, View>(
  list: ListId,
  items: Item[],
  limit: number,
  positionOf: (item: Item) => string,
  toView: (item: Item) => View,
): Page<View> {
  const shown = items.slice(0, limit);
  const last = shown.at(-1);
  const nextCursor = items.length > limit && last !== undefined ? encodeCursor(list, positionOf(last)) : null;
  return { data: shown.map(toView), nextCursor };
}

function encodeCursor(list: ListId, position: string): string {
  return Buffer.from(`${list}.${position}`, 'utf8').toString('base64url');
}

/**
 * The position of a cursor; undefined if none was sent.
 * @throws Problem `cursor_invalid` unless `toPage` could have made exactly this cursor for this list
 */
export function decodeCursor<Position extends string>(
  list: ListId,
  cursor: string | undefined,
  isPosition: (text: string) => text is Position,
): Position | undefined {
  if (cursor === undefined) return undefined;
  const position = Buffer.from(cursor, 'base64url')
    .toString('utf8')
    .slice(list.length + 1);
  if (encodeCursor(list, position) !== cursor || !isPosition(position)) {
    throw new Problem('cursor_invalid', 'This list did not return this cursor with the same filters.');
  }
  return position;
}
