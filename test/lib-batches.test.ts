import { chunksOf, inBatches, pagesOf } from '../src/lib/batches.ts';
import { t } from './support/tap.ts';

t.test('chunks have all items in order, with at most the given size', (t) => {
  t.same(chunksOf([1, 2, 3, 4, 5], 2), [[1, 2], [3, 4], [5]]);
  t.same(chunksOf([1, 2], 2), [[1, 2]]);
  t.same(chunksOf([], 2), []);
  t.end();
});

t.test('batches continue until one is not full, and are counted', async (t) => {
  const remaining = [2, 2, 1, 2];
  t.equal(await inBatches(2, async () => remaining.shift() ?? 0), 5);
  t.same(remaining, [2]);
});

t.test('no batch begins once the signal is aborted', async (t) => {
  const stop = new AbortController();
  const step = async () => {
    stop.abort();
    return 2;
  };
  t.equal(await inBatches(2, step, stop.signal), 2);
  t.equal(await inBatches(2, step, stop.signal), 0);
});

t.test('each page is read after the last item of the previous page, until one is empty', async (t) => {
  const all = [1, 2, 3, 4];
  const pages: number[][] = [];
  for await (const page of pagesOf<number>(async (last = 0) => all.filter((item) => item > last).slice(0, 2))) {
    pages.push(page);
  }
  t.same(pages, [
    [1, 2],
    [3, 4],
  ]);
});
