/** Counts the asserts of a TAP stream, without the lines that only sum up what lies indented above or below them. */
export function countAsserts(tap: string): { passed: number; failed: number } {
  const counts = { passed: 0, failed: 0 };
  const openSubtests: number[] = [];
  for (const line of tap.split('\n')) {
    const indent = line.length - line.trimStart().length;
    const text = line.trimStart();
    if (text.startsWith('# Subtest')) openSubtests.push(indent);
    const [, not] = /^(not )?ok \d+/.exec(text) ?? [undefined, undefined];
    if (!/^(not )?ok \d+/.test(text)) continue;
    if (openSubtests.at(-1) === indent) openSubtests.pop();
    else if (!text.endsWith('{')) counts[not === undefined ? 'passed' : 'failed'] += 1;
  }
  return counts;
}
