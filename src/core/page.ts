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

/**
 * Makes the page from up to `limit + 1` items that a store has read: the one too many only says that there is more.
 * @param positionOf the item's place in the list's order; the store reads on below it
 */
export function toPage<Item, View>(
  items: Item[],
  limit: number,
  positionOf: (item: Item) => string,
  toView: (item: Item) => View,
): Page<View> {
  const shown = items.slice(0, limit);
  const last = shown.at(-1);
  const nextCursor = items.length > limit && last !== undefined ? encodeCursor(positionOf(last)) : null;
  return { data: shown.map(toView), nextCursor };
}

function encodeCursor(position: string): string {
  return Buffer.from(position, 'utf8').toString('base64url');
}

/**
 * The position that a cursor stands for; undefined where none was sent.
 * @throws Problem `cursor_invalid` unless it is, to the letter, one that `toPage` could have made
 */
export function decodeCursor<Position extends string>(
  cursor: string | undefined,
  isPosition: (text: string) => text is Position,
): Position | undefined {
  if (cursor === undefined) return undefined;
  const position = Buffer.from(cursor, 'base64url').toString('utf8');
  if (encodeCursor(position) !== cursor || !isPosition(position)) {
    throw new Problem('cursor_invalid', 'cursor is not one that this list has returned.');
  }
  return position;
}
