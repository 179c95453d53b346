/** Slices of at most so many items. */
export function chunksOf<Item>(items: readonly Item[], size: number): Item[][] {
  return Array.from({ length: Math.ceil(items.length / size) }, (_, index) =>
    items.slice(index * size, (index + 1) * size),
  );
}

/**
 * Repeats `step` until it has done less than a whole batch, or the signal is aborted.
 * @returns how much was done in all
 */
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

/** Pages in the order of a key: each is read with the last item of the one before, until one is empty. */
export async function* pagesOf<Item>(read: (last: Item | undefined) => Promise<Item[]>): AsyncGenerator<Item[]> {
  for (let page = await read(undefined); page.length > 0; page = await read(page.at(-1))) yield page;
}
