/** Slices with at most `size` items. */
export function chunksOf<Item>(items: readonly Item[], size: number): Item[][] {
  return Array.from({ length: Math.ceil(items.length / size) }, (_, index) =>
    items.slice(index * size, (index + 1) * size),
  );
}

/** Repeats `step` until it returns less than a whole batch, or the signal is aborted. @returns the sum */
export async function inBatches(
  batchSize: number,
  step: (batchSize: number) => Promise<number>,
  signal?: AbortSignal,
): Promise<number> {
  let total = 0;
  for (let done = batchSize; done === batchSize && signal?.aborted !== true; total += done) {
    done = await step(batchSize);
  }
  return total;
}

/**
 * Reads page after page in the order of a key, until one is empty. Each call gets the last item of the previous page.
 */
export async function* pagesOf<Item>(read: (last: Item | undefined) => Promise<Item[]>): AsyncGenerator<Item[]> {
  for (let page = await read(undefined); page.length > 0; page = await read(page.at(-1))) yield page;
}
