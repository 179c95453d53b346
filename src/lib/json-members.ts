const token = /"(?:[^"\\]+|\\.)*"(\s*:)?|[{}[\],]/g;

interface Level {
  /** Undefined in an array. */
  names: Set<string> | undefined;
  /** Of the member or entry that is read now. */
  at: string | number;
}

/**
 * The path of the first member whose name its object has already (RFC 7493 section 2.3): of such members a reader keeps the
 * last, and another program on the way may have looked at the first.
 * @param value what `json` was read as
 */
export function repeatedMember(json: string, value: unknown): string | undefined {
  // Each member has a colon, so where there are no more of them than members nothing has to be searched.
  if (colonsIn(json) === membersIn(value)) return undefined;
  const levels: Level[] = [];
  for (const [text, colon] of json.matchAll(token)) {
    const level = levels.at(-1);
    if (text === '{') levels.push({ names: new Set(), at: '' });
    else if (text === '[') levels.push({ names: undefined, at: 0 });
    else if (text === '}' || text === ']') levels.pop();
    else if (text === ',') {
      if (typeof level?.at === 'number') level.at += 1;
    } else if (colon !== undefined && level?.names !== undefined) {
      const name: string = JSON.parse(text.slice(0, -colon.length));
      level.at = name;
      if (level.names.has(name)) return levels.map(({ at }) => at).join('.');
      level.names.add(name);
    }
  }
  return undefined;
}

function colonsIn(text: string): number {
  let count = 0;
  for (let at = text.indexOf(':'); at >= 0; at = text.indexOf(':', at + 1)) count += 1;
  return count;
}

function membersIn(value: unknown): number {
  if (typeof value !== 'object' || value === null) return 0;
  const members = Object.values(value);
  return members.reduce((count, member) => count + membersIn(member), Array.isArray(value) ? 0 : members.length);
}
