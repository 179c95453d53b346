import { randomBytes } from 'node:crypto';
import { cp, readFile, rm, writeFile } from 'node:fs/promises';
import path from 'node:path';
import type { Test } from 'tap';
import { dbQuery, roleOf } from './database.ts';
import { compiled, type RunningProcess, runCompiled } from './process.ts';
import type { Served } from './served.ts';

/** A made-up migration of a later version. */
export interface LaterMigration {
  name: string;
  kind: 'expand' | 'contract';
  requires?: string;
  outsideTransaction?: true;
  statements: string[];
}

export interface Version {
  run(t: Test, entry: string, args: string[], env: NodeJS.ProcessEnv): RunningProcess;
  /** Runs a command to its end. */
  latchkey(t: Test, args: string[], env: NodeJS.ProcessEnv): Promise<{ code: number | null; output: string }>;
}

/** A later version of the program: a copy of this one with another number and further migrations. */
export async function laterVersion(t: Test, version: string, later: readonly LaterMigration[]): Promise<Version> {
  const name = path.join('versions', randomBytes(6).toString('hex'));
  const directory = compiled(name);
  t.teardown(() => rm(directory, { recursive: true, force: true }));
  await cp(compiled('src'), path.join(directory, 'src'), { recursive: true });
  await cp(compiled('migrations'), path.join(directory, 'migrations'), { recursive: true });
  await cp('openapi', path.join(directory, 'openapi'), { recursive: true });
  const description = JSON.parse(await readFile('package.json', 'utf8')) as object;
  await writeFile(path.join(directory, 'package.json'), JSON.stringify({ ...description, version }));
  await writeFile(path.join(directory, 'src/database/migrations.js'), listOf(later));
  const run: Version['run'] = (t, entry, args, env) => runCompiled(t, path.join(name, 'src', entry), args, { env });
  return {
    run,
    async latchkey(t, args, env) {
      const command = run(t, 'cli/latchkey.ts', args, env);
      const { code } = await command.exited;
      return { code, output: command.output() };
    },
  };
}

/** The module that `src/database/migrations.ts` becomes in a later version. */
function listOf(later: readonly LaterMigration[]): string {
  return `
    import { sql } from 'kysely';
    import * as initial from '../../migrations/0001-initial.js';
    const later = ${JSON.stringify(later)};
    const toMigration = ({ name, statements, ...declared }) => [name, {
      ...declared,
      async up(db) { for (const statement of statements) await sql.raw(statement).execute(db); },
    }];
    export const migrations = { '0001-initial': initial, ...Object.fromEntries(later.map(toMigration)) };`;
}

/** Adds a column to keys and to partners. */
export const expand: LaterMigration = {
  name: '0002-nicknames',
  kind: 'expand',
  statements: [
    "alter table api_keys add column nickname text not null default ''",
    "alter table partners add column nickname text not null default ''",
  ],
};

/** Needs `expand`. */
export const index: LaterMigration = {
  name: '0003-nickname-index',
  kind: 'expand',
  outsideTransaction: true,
  statements: [
    'drop index concurrently if exists api_keys_by_nickname',
    'create index concurrently api_keys_by_nickname on api_keys (nickname)',
  ],
};

/** The environment of `latchkey migrate`. */
export function asOwner({ env, urls }: Served): NodeJS.ProcessEnv {
  return { ...env, MIGRATION_DATABASE_URL: urls.owner, APP_ROLE: roleOf(urls.app) };
}

/** Whether a table has the column of `expand`. */
export const hasColumn = async (url: string, table: string) =>
  (
    await dbQuery(
      url,
      "select 1 from pg_attribute where attrelid = $1::regclass and attname = 'nickname' and not attisdropped",
      [table],
    )
  ).length === 1;
