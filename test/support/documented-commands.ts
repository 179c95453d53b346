import { readFile } from 'node:fs/promises';

/** The shell commands in one section of a page, in order. */
export async function commandsOf(page: string, section: string): Promise<string[]> {
  const text = (await readFile(page, 'utf8')).split(/^## /m).find((part) => part.startsWith(`${section}\n`)) ?? '';
  return [...text.matchAll(/^```sh\n(.*?)^```$/gms)].map(([, commands = '']) => commands);
}
