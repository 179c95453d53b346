import { readFile } from 'node:fs/promises';

interface Instruction {
  word: string;
  rest: string;
}

/** The instructions, with continued lines joined and without comments. */
export async function readDockerfile(): Promise<Instruction[]> {
  const text = (await readFile('Dockerfile', 'utf8')).replaceAll(/^#.*\n/gm, '').replaceAll(/\\\n/g, ' ');
  return [...text.matchAll(/^([A-Z]+)\s+(.*)$/gm)].map(([, word = '', rest = '']) => ({ word, rest: rest.trim() }));
}
