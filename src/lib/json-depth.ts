/** Whether a JSON text is nested deeper than so many levels. It recurses over nothing itself. */
export function isNestedDeeper(levels: number, text: string): boolean {
  // With no more brackets than levels there is nothing to count, and most texts have a few.
  if (hasAtMost(levels / 2, '{', text) && hasAtMost(levels / 2, '[', text)) return false;
  let depth = 0;
  let inString = false;
  for (let index = 0; index < text.length; index++) {
    const character = text[index];
    if (inString) {
      if (character === '\\') index += 1;
      else if (character === '"') inString = false;
    } else if (character === '"') inString = true;
    else if (character === '{' || character === '[') {
      depth += 1;
      if (depth > levels) return true;
    } else if (character === '}' || character === ']') depth -= 1;
  }
  return false;
}

function hasAtMost(most: number, bracket: string, text: string): boolean {
  let found = 0;
  for (let at = text.indexOf(bracket); at >= 0; at = text.indexOf(bracket, at + 1)) {
    found += 1;
    if (found > most) return false;
  }
  return true;
}
