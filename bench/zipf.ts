/** Places below `size`, each as often as Zipf's law (exponent 1) says: few keys are asked for most of the time. */
export function zipfPicks(size: number, count: number): Uint32Array {
  const reached = new Float64Array(size);
  let sum = 0;
  for (let place = 0; place < size; place++) {
    sum += 1 / (place + 1);
    reached[place] = sum;
  }
  return Uint32Array.from({ length: count }, () => firstReaching(reached, Math.random() * sum));
}

function firstReaching(reached: Float64Array, wanted: number): number {
  let [low, high] = [0, reached.length - 1];
  while (low < high) {
    const middle = (low + high) >> 1;
    if ((reached[middle] ?? 0) < wanted) low = middle + 1;
    else high = middle;
  }
  return low;
}
