import { readFile } from 'node:fs/promises';

/** The blocks of shell commands in one section of a page, in order: what people paste is what is tested. */
export async function commandsOf(page: string, section: string): Promise<string[]> {
  const text = (await readFile(page, 'utf8')).split(/^## /m).find((part) => part.startsWith(`${section}\n`)) ?? '';
  return [...text.matchAll(/^```sh\n(.*?)^```$/gms)].map(([, commands = '']) => commands);
}
