interface Counts {
  passed: number;
  failed: number;
  /** What was not run, each with its reason. */
  skipped: string[];
}

/** Counts the asserts of a TAP stream, without the lines that only sum up what lies indented above or below them. */
export function countAsserts(tap: string): Counts {
  const counts: Counts = { passed: 0, failed: 0, skipped: [] };
  const openSubtests: number[] = [];
  for (const line of tap.split('\n')) {
    const indent = line.length - line.trimStart().length;
    const text = line.trimStart();
    if (text.startsWith('# Subtest')) openSubtests.push(indent);
    const [, not] = /^(not )?ok \d+/.exec(text) ?? [undefined, undefined];
    if (!/^(not )?ok \d+/.test(text)) continue;
    const skipped = /^ok \d+ - (.*) # SKIP (.*)$/.exec(text);
    if (openSubtests.at(-1) === indent) openSubtests.pop();
    else if (skipped !== null) counts.skipped.push(`${skipped[1]}: ${skipped[2]}`);
    else if (!text.endsWith('{')) counts[not === undefined ? 'passed' : 'failed'] += 1;
  }
  return counts;
}
