import { createHash } from 'node:crypto';
import { canonicalJson } from './canonical-json.ts';
import { Problem } from './errors.ts';

/** A page of a list, newest first. `nextCursor` is null on the last page. */
export interface Page<Item> {
  data: Item[];
  nextCursor: string | null;
}

export interface PageRequest {
  limit: number;
  cursor?: string | undefined;
}

/** Which list, with which filters: a cursor is valid for exactly one. */
export type ListId = string & { readonly __list: never };

/** @param facts everything that decides what the list contains, such as its route and its filters */
export function listId(facts: Record<string, unknown>): ListId {
  return createHash('sha256').update(canonicalJson(facts)).digest('base64url').slice(0, 11) as ListId;
}

/**
 * Makes the page from up to `limit + 1` items that a store has read: the last one only says that there are more.
 * @param positionOf the item's place in the list's order; the store continues below it
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
 * The position that a cursor stands for; undefined where none was sent.
 * @throws Problem `cursor_invalid` unless it is exactly one that `toPage` could have made for this list
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
    throw new Problem('cursor_invalid', 'cursor is not one that this list has returned, with the same filters.');
  }
  return position;
}
