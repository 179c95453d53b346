interface Counts {
  passed: number;
  /** The failed asserts, each with the tests it stands in, the outermost first: `test/a.test.ts > a page > has a next one`. */
  failures: string[];
  /** What was not run, each with its reason. */
  skipped: string[];
}

/**
 * Counts the asserts of a TAP stream, without the lines that only sum up a subtest. A subtest that failed although
 * none of its asserts did, such as a file that ended early, counts as one failed assert.
 */
export function countAsserts(tap: string): Counts {
  const counts: Counts = { passed: 0, failures: [], skipped: [] };
  const openSubtests: { indent: number; name: string; failuresBefore: number }[] = [];
  for (const line of tap.split('\n')) {
    const indent = line.length - line.trimStart().length;
    const text = line.trimStart();
    const subtest = /^# Subtest: (.*)$/.exec(text);
    if (subtest !== null) openSubtests.push({ indent, name: subtest[1] ?? '', failuresBefore: counts.failures.length });
    const result = /^(not )?ok \d+(?: - (.*))?$/.exec(text);
    if (result === null || text.endsWith('{')) continue;
    const isFailure = result[1] !== undefined;
    const path = [...openSubtests.map(({ name }) => name), result[2] ?? ''].join(' > ');
    const skipped = /^ok \d+ - (.*) # SKIP (.*)$/.exec(text);
    const innermost = openSubtests.at(-1);
    if (innermost?.indent === indent) {
      openSubtests.pop();
      if (isFailure && counts.failures.length === innermost.failuresBefore) counts.failures.push(path);
    } else if (skipped !== null) counts.skipped.push(`${skipped[1]}: ${skipped[2]}`);
    else if (isFailure) counts.failures.push(path);
    else counts.passed += 1;
  }
  return counts;
}
