/** Random indexes below `size`, distributed by Zipf's law with exponent 1. */
export function zipfIndexes(size: number, count: number): Uint32Array {
  const cumulative = new Float64Array(size);
  let sum = 0;
  for (let index = 0; index < size; index++) {
    sum += 1 / (index + 1);
    cumulative[index] = sum;
  }
  return Uint32Array.from({ length: count }, () => lowerBound(cumulative, Math.random() * sum));
}

/** @returns the first index whose value is at least `value` */
function lowerBound(sorted: Float64Array, value: number): number {
  let [low, high] = [0, sorted.length - 1];
  while (low < high) {
    const middle = (low + high) >> 1;
    if ((sorted[middle] ?? 0) < value) low = middle + 1;
    else high = middle;
  }
  return low;
}
