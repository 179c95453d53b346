export interface Counts {
  passed: number;
  failures: Failure[];
  /** The skipped tests with their reasons. */
  skipped: string[];
}

export interface Failure {
  /** The failed assertion and its tests, the outermost first: `test/a.test.ts > a page > has a next one`. */
  path: string;
  /** The details in TAP: values and position. */
  details: string;
}

/**
 * Counts the assertions in the TAP output of a file, without the summary lines of subtests. A subtest that failed
 * without a failed assertion, such as one that threw, counts as one.
 */
export function countAsserts(file: string, tap: string): Counts {
  const counts: Counts = { passed: 0, failures: [], skipped: [] };
  const openSubtests: { indent: number; name: string; failuresBefore: number }[] = [];
  const lines = tap.split('\n');
  for (const [index, line] of lines.entries()) {
    const indent = line.length - line.trimStart().length;
    const text = line.trimStart();
    const subtest = /^# Subtest: (.*)$/.exec(text);
    if (subtest !== null) openSubtests.push({ indent, name: subtest[1] ?? '', failuresBefore: counts.failures.length });
    const result = /^(not )?ok \d+(?: - (.*))?$/.exec(text);
    if (result === null || text.endsWith('{')) continue;
    const isFailure = result[1] !== undefined;
    const innermost = openSubtests.at(-1);
    const isSummary = innermost?.indent === indent;
    if (isSummary) openSubtests.pop();
    const skipped = /^ok \d+ - (.*) # SKIP (.*)$/.exec(text);
    if (isFailure && (!isSummary || counts.failures.length === innermost.failuresBefore)) {
      const path = [file, ...openSubtests.map(({ name }) => name), result[2] ?? ''].join(' > ');
      counts.failures.push({ path, details: detailsAt(lines, index + 1) });
    } else if (skipped !== null) counts.skipped.push(`${skipped[1]}: ${skipped[2]}`);
    else if (!isSummary) counts.passed += 1;
  }
  return counts;
}

/** The YAML block after a result. */
function detailsAt(lines: string[], start: number): string {
  if (lines[start]?.trim() !== '---') return '';
  const end = lines.findIndex((line, index) => index > start && line.trim() === '...');
  return lines.slice(start + 1, end < 0 ? undefined : end).join('\n');
}
