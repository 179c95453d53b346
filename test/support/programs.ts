import { spawnSync } from 'node:child_process';

/** Programs that are used where they are installed; tests that need them are skipped, with a word, where they are not. */
export type Program =
  | 'nginx'
  | 'caddy'
  | 'redis-server'
  | 'pgbouncer'
  | 'node'
  | 'python3'
  | 'openssl'
  | 'curl'
  | 'psql'
  | 'jq'
  | 'chromium'
  | 'git'
  | 'systemd-analyze'
  | 'promtool'
  | 'haproxy'
  | 'apache2'
  | 'pg_dump'
  | 'buildah'
  | 'debootstrap'
  | 'unshare'
  | 'npm';

/** For tap's `skip`: false where the program is there, else the word. */
export function unlessInstalled(program: Program): string | false {
  const isThere = spawnSync('sh', ['-c', `command -v ${program}`]).status === 0;
  return isThere ? false : `${program} is not installed`;
}
