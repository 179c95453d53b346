import { readFile } from 'node:fs/promises';

/** The fenced blocks of a page's section of the second level, in order. @param language only these blocks */
export async function snippetsOf(page: string, section: string, language = '\\w+'): Promise<string[]> {
  const text = await readFile(page, 'utf8');
  const part = text.split(/^## /m).find((one) => one.startsWith(`${section}\n`)) ?? '';
  const blocks = new RegExp(`^\`\`\`${language}\n(.*?)^\`\`\`$`, 'gms');
  return [...part.matchAll(blocks)].map(([, snippet = '']) => snippet);
}

/** Puts this machine's addresses into a snippet, and fails if the snippet does not contain them as expected. */
export function fill(snippet: string | undefined, places: Record<string, string>): string {
  return Object.entries(places).reduce((text, [place, here]) => {
    if (text.split(place).length !== 2) throw new Error(`the snippet should have «${place}» once`);
    return text.replace(place, () => here);
  }, snippet ?? '');
}
