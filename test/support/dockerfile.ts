import { cp, mkdir, readFile, symlink } from 'node:fs/promises';
import path from 'node:path';
import type { Test } from 'tap';
import { run } from './process.ts';

/** A stage of the Dockerfile, carried out without Docker: its file system is a folder, and `/app` lies in it. */
export interface Stage {
  name: string;
  /** The working folder as it is on this machine. */
  directory: string;
  env: Record<string, string>;
  user: string | undefined;
  entrypoint: string[];
  command: string[];
  healthcheck: string[];
}

interface Instruction {
  word: string;
  rest: string;
}

/** The instructions, with continued lines put together and comments left out. */
export async function readDockerfile(): Promise<Instruction[]> {
  const text = (await readFile('Dockerfile', 'utf8')).replaceAll(/^#.*\n/gm, '').replaceAll(/\\\n/g, ' ');
  return [...text.matchAll(/^([A-Z]+)\s+(.*)$/gm)].map(([, word = '', rest = '']) => ({ word, rest: rest.trim() }));
}

/** What the build is given: `.dockerignore` lets nothing through but what it names. */
export async function readContext(): Promise<string[]> {
  const lines = (await readFile('.dockerignore', 'utf8')).split('\n').filter((line) => line && !line.startsWith('#'));
  const [first, ...others] = lines;
  if (first !== '*' || others.some((line) => !line.startsWith('!'))) {
    throw new Error('.dockerignore should refuse everything and then name what is let through');
  }
  return others.map((line) => line.slice(1));
}

/**
 * Builds the image as far as a machine without Docker can: every stage as a folder below `root`, by its own COPY and RUN
 * lines, with this machine's Node in place of the base image's.
 */
export async function buildStages(t: Test, root: string): Promise<Stage[]> {
  const context = await readContext();
  const stages: Stage[] = [];
  for (const { word, rest } of await readDockerfile()) {
    if (word === 'FROM') {
      const name = / AS (\S+)$/.exec(rest)?.[1] ?? 'image';
      stages.push({ ...emptyStage, name, directory: path.join(root, name) });
      continue;
    }
    const stage = stages.at(-1);
    if (stage === undefined) throw new Error(`${word} comes before FROM`);
    await carryOut(t, stage, { word, rest }, { root, stages, context });
  }
  return stages;
}

const emptyStage = { env: {}, user: undefined, entrypoint: [], command: [], healthcheck: [] };

interface Surroundings {
  root: string;
  stages: Stage[];
  context: string[];
}

async function carryOut(t: Test, stage: Stage, { word, rest }: Instruction, surroundings: Surroundings): Promise<void> {
  switch (word) {
    case 'WORKDIR':
      stage.directory = path.join(surroundings.root, stage.name, rest);
      await mkdir(stage.directory, { recursive: true });
      return;
    case 'COPY':
      return copy(stage, rest, surroundings);
    case 'RUN':
      return runIn(t, stage, rest);
    case 'ENV':
      stage.env = Object.fromEntries(rest.split(' ').map((each) => each.split('=') as [string, string]));
      return;
    case 'USER':
      stage.user = rest;
      return;
    case 'ENTRYPOINT':
      stage.entrypoint = JSON.parse(rest);
      return;
    case 'CMD':
      stage.command = JSON.parse(rest);
      return;
    case 'HEALTHCHECK':
      stage.healthcheck = JSON.parse(rest.slice(rest.indexOf('[')));
      return;
    case 'EXPOSE':
      return;
    default:
      throw new Error(`the Dockerfile has an instruction that is not carried out here: ${word}`);
  }
}

async function copy(stage: Stage, rest: string, { root, stages, context }: Surroundings): Promise<void> {
  const [, from, paths = ''] = /^(?:--from=(\S+) )?(.*)$/.exec(rest) ?? [];
  const sources = paths.split(' ');
  const target = sources.pop() ?? '';
  if (from !== undefined && !stages.some(({ name }) => name === from)) throw new Error(`there is no stage ${from}`);
  for (const source of sources) {
    if (from === undefined && !context.includes(source)) throw new Error(`.dockerignore keeps ${source} out`);
    const place = from === undefined ? source : path.join(root, from, source);
    const into = target.endsWith('/') ? path.join(target, path.basename(source)) : target;
    await cp(place, path.join(stage.directory, into), { recursive: true, verbatimSymlinks: true });
  }
}

async function runIn(t: Test, stage: Stage, line: string): Promise<void> {
  if (line === 'npm ci --ignore-scripts') {
    // The whole install is the one that the tests run on, by the same lock; only the production install is made anew.
    return symlink(path.resolve('node_modules'), path.join(stage.directory, 'node_modules'));
  }
  // What npm has fetched before is not fetched again.
  const env = { ...stage.env, npm_config_prefer_offline: 'true' };
  const shell = run(t, 'sh', ['-euc', line], { cwd: stage.directory, env });
  const { code } = await shell.exited;
  if (code !== 0) throw new Error(`«${line}» ended with ${code}:\n${shell.output()}`);
}
